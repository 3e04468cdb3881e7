"""From an exported folder to a model, without the model's plugin or its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qinfer.core.engine.sizing import choose_sizes
from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.export.checks import checking
from qinfer.core.export.manifest import Maker, Manifest, read_manifest
from qinfer.core.hardware.device import open_device
from qinfer.core.hardware.start_paddle import import_paddle
from qinfer.core.loading import AUTO, KV_CACHE_DTYPES, LoadedModel
from qinfer.core.registry.discovery import PluginRecord, normalise
from qinfer.core.registry.selection import open_session, resolve
from qinfer.core.session import Selected
from qinfer.core.types import DeviceInfo, RunConfig


def open_exported(
    run: RunConfig,
    selected: Selected,
    folder: Path,
    checked: Callable[[], object] = lambda: None,
) -> LoadedModel:
    """The model of an exported folder; ``checked`` is called when that is known to be right.

    Raises UsageError for settings that contradict the export, BadCheckpoint for files that are not
    as they were, Unsupported where something it needs is missing.
    """
    from qinfer.core.config import generation_config

    begin = time.perf_counter()
    manifest = read_manifest(folder)
    refuse_contradictions(run, selected, manifest, folder)
    with checking(folder, manifest.files) as checksums:
        backend = resolve("backend", manifest.backend.reference, selected.installed)
        device = _open_device(run, manifest, folder)
        run = choose_sizes(_as_exported(run, manifest, folder, device.label), device.kind)
        paddle = import_paddle(run.threads, device.label)
        _require_paddle(manifest, folder, paddle.__version__)
        hooks = open_session([backend, *selected.observers])
        hooks.require_support(device)
        hooks.configure(run)
        checksums.require()
    checked()
    model = hooks.open_export(manifest.needs, manifest.config, manifest.cache, run, folder)
    stats = replace(manifest.parameters, seconds=time.perf_counter() - begin)
    hooks.loaded(stats)
    return LoadedModel(
        run=run,
        folder=folder,
        hooks=hooks,
        config=manifest.config,
        device=device,
        generation=generation_config(folder),
        linears=manifest.linears,
        model=model,
        plan=manifest.plan,
        stats=stats,
        cache=manifest.cache,
    )


def _open_device(run: RunConfig, manifest: Manifest, folder: Path) -> DeviceInfo:
    """The one asked for, else the first of the kind it was exported for."""
    try:
        return open_device(manifest.device if run.device == AUTO else run.device)
    except Unsupported as error:
        raise Unsupported(
            f"{folder} was exported for a {manifest.device}: {error.message}",
            remedy="Run it where there is one, or export the checkpoint again with --device cpu.",
        ) from error


def _as_exported(run: RunConfig, manifest: Manifest, folder: Path, device: str) -> RunConfig:
    """The run's settings with what the export has decided."""
    return replace(
        run,
        model=str(folder),
        plugin=manifest.model.name,
        quant=manifest.quant.name,
        backend=manifest.backend.name,
        device=device,
        dtype=manifest.config.dtype,
        block_size=manifest.cache.block_size,
        operators=manifest.needs.operators,
    )


def refuse_contradictions(
    run: RunConfig, selected: Selected, manifest: Manifest, folder: Path
) -> None:
    """Raise UsageError naming everything the user said and the folder does not agree with."""
    config, cache = manifest.config, manifest.cache
    context, kv_dtype = config.max_position_embeddings, KV_CACHE_DTYPES[run.kv_cache_dtype]
    said = {
        f"--plugin {run.plugin}": _is_other(selected.model, manifest.model),
        f"--quant {run.quant}": _is_other(selected.quant, manifest.quant),
        f"--backend {run.backend}": _is_other(selected.backend, manifest.backend),
        f"--dtype {run.dtype}": run.dtype not in (AUTO, config.dtype),
        f"--kv-cache-dtype {run.kv_cache_dtype}": bool(kv_dtype) and kv_dtype != cache.dtype,
        f"--device {run.device}": run.device.partition(":")[0] not in (AUTO, manifest.device),
        # Which other options than --max-model-len may have asked for: --window, --prompt-tokens.
        f"a context of {run.max_model_len} tokens": run.max_model_len > context,
        "random_weights": run.random_weights,
    }
    wrong = [option for option, is_wrong in said.items() if is_wrong]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} contradicts {folder}, which was exported with "
            f"--plugin {manifest.model.name} --quant {manifest.quant.name} "
            f"--backend {manifest.backend.name} --dtype {config.dtype} for the {manifest.device}, "
            f"keys and values in {cache.dtype} and a context of {context} tokens",
            remedy="Leave the option out or ask for less, or export the checkpoint again with it.",
        )


def _require_paddle(manifest: Manifest, folder: Path, here: str) -> None:
    """Refuse a program of another Paddle; what a patch changes, it can do without."""
    if manifest.paddle.split(".")[:2] != here.split(".")[:2]:
        raise Unsupported(
            f"{folder} was exported with Paddle {manifest.paddle}, and this is Paddle {here}",
            remedy=f"Install Paddle {manifest.paddle}, or export the checkpoint again.",
        )


def _is_other(record: PluginRecord | None, maker: Maker) -> bool:
    found = record and (record.name, normalise(record.dist))
    return found is not None and found != (maker.name, normalise(maker.distribution))
