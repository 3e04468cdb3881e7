"""From a checkpoint to an exported folder: complete, or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import qinfer
from qinfer.core.checkpoint.companions import copy_companions
from qinfer.core.checkpoint.source import resolve_model
from qinfer.core.errors import QinferError, Unsupported, UsageError
from qinfer.core.export.chat_template import write_chat_template
from qinfer.core.export.checks import file_facts
from qinfer.core.export.manifest import NAME, Maker, Manifest, require_checkpoint, write_manifest
from qinfer.core.loading import Prepared, cache_layout, prepare, read_model
from qinfer.core.registry.hooks import Hooks
from qinfer.core.session import Progress, select
from qinfer.core.store import MANIFEST, make_folder
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import CacheSpec, RunConfig


def export_model(run: RunConfig, output: Path, progress: Progress) -> None:
    """Export the checkpoint ``run`` names into ``output``, a folder that must not exist.

    Raises UsageError for one that does, Unsupported for a backend that exports nothing, whatever
    loading raises, and QinferError where the disk is full.
    """
    if output.exists():
        raise UsageError(f"{output} exists already", remedy="Name a folder that does not.")
    folder = resolve_model(run.model or None, progress=progress.note)
    require_checkpoint(folder)
    prepared = prepare(run, select(run), folder)
    if not prepared.hooks.runs_exports:
        raise Unsupported(
            f"{prepared.hooks.record('backend').label} exports nothing",
            remedy="Use --backend static.",
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        make_folder(output, lambda new: fill_folder(new, prepared, progress))
    except OSError as error:
        raise QinferError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Free disk space, or name a folder on another disk.",
        ) from error


def fill_folder(folder: Path, prepared: Prepared, progress: Progress) -> None:
    """Load the model and write everything that runs it, the manifest last."""
    import paddle

    loaded = read_model(prepared, progress)
    hooks, config, cache = loaded.hooks, replace(loaded.config, extra={}), exported_cache(prepared)
    hooks.export(loaded.model, config, cache, loaded.run, folder)
    written = {path.name for path in folder.iterdir()}
    copy_companions(prepared.folder, folder, {*written, NAME, MANIFEST})
    if Tokenizer.load(folder).chat_template is None:
        write_chat_template(folder, hooks, loaded.config)
    manifest = Manifest(
        qinfer=qinfer.__version__,
        paddle=paddle.__version__,
        device=loaded.device.kind,
        model=maker(hooks, "model"),
        quant=maker(hooks, "quant"),
        backend=maker(hooks, "backend"),
        config=config,
        linears=tuple(loaded.linears),
        plan=loaded.plan,
        cache=cache,
        needs=hooks.plan_export(loaded.run),
        parameters=loaded.stats,
        files=file_facts(folder),
    )
    write_manifest(folder, manifest)


def exported_cache(prepared: Prepared) -> CacheSpec:
    """The KV cache's format, without a number of blocks."""
    run = prepared.run
    return cache_layout(
        prepared.hooks, prepared.config, prepared.plan, run.block_size, run.kv_cache_dtype
    )


def maker(hooks: Hooks, kind: str) -> Maker:
    """What the manifest says of a selected plugin."""
    record = hooks.record(kind)
    return Maker(
        name=record.name,
        distribution=record.dist,
        version=record.version,
        api=hooks.plugin(kind).api,
    )
