"""``quantize``: a model, a scheme and calibration data in; a quantised checkpoint out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.layout import LoadPlan, plan_loading
from qinfer.core.checkpoint.source import resolve_model
from qinfer.core.config import generation_config, with_generation
from qinfer.core.errors import BadInput, QinferError, UsageError
from qinfer.core.export.manifest import require_checkpoint
from qinfer.core.hardware.device import open_device
from qinfer.core.hardware.memory import keep_freed_memory
from qinfer.core.hardware.place import place
from qinfer.core.hardware.start_paddle import import_paddle
from qinfer.core.json_file import read_json
from qinfer.core.loading import BACKEND
from qinfer.core.quantize.calibrate import CalibratingParts, Plan, scheme_of
from qinfer.core.quantize.forward import Pass, run_calibration
from qinfer.core.quantize.kv_cache import cache_scales
from qinfer.core.quantize.output import Writer
from qinfer.core.quantize.rounding import RANGES
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.quantize.work import WorkFolder
from qinfer.core.registry.discovery import discover
from qinfer.core.registry.hooks import Hooks
from qinfer.core.registry.selection import detect_model, open_session, resolve, stored_method
from qinfer.core.session import Progress
from qinfer.core.text.corpus import CALIBRATION, read_corpus, windows
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import Array, LinearSpec, ModelConfig, RunConfig, Scheme

REPORT = "quantize-report.json"


def quantize(
    settings: QuantizeSettings, output: Path, progress: Progress, *, restart: bool = False
) -> dict[str, Any]:
    """Quantise and write ``output``, a folder that must not exist; returns the report.

    What is done lies in ``OUTPUT.partial`` meanwhile: the same call goes on from there. Raises
    UsageError, BadInput or BadCheckpoint before anything is computed, and QinferError when the disk
    is full.
    """
    settings.check()
    if output.exists():
        raise UsageError(f"{output} exists already", remedy="Name a folder that does not.")
    begin = time.perf_counter()
    keep_freed_memory()
    work = WorkFolder(output)
    try:
        source = _open(settings, resolve_model(settings.model or None, progress=progress.note))
        pieces = _pieces(settings, source)
        if work.open(settings, source.folder, restart=restart) and progress.note:
            progress.note(f"Continuing {work.folder}")
        left = _calibrate(settings, work, source, pieces, progress)
        kv_scales, kv_errors = _kv_cache(settings, left)
        report = {
            "settings": {key: str(value) for key, value in asdict(settings).items()},
            "tokens": sum(map(len, pieces)),
            "seconds": time.perf_counter() - begin,
            "linears": work.report(),
            "skipped": work.skipped,
            "kv_cache": {"dtype": settings.kv_cache, "errors": kv_errors},
        }
        _write(work, output, source, report, kv_scales)
    except OSError as error:
        raise QinferError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Free disk space, or name a folder on another disk; the same command "
            "continues what is done.",
        ) from error
    return report


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that is quantised, and what its plugins say of it."""

    folder: Path
    raw: Mapping[str, Any]
    hooks: Hooks
    config: ModelConfig
    checkpoint: Checkpoint
    loading: LoadPlan
    specs: Sequence[LinearSpec]


def _open(settings: QuantizeSettings, folder: Path) -> Source:
    require_checkpoint(folder)
    raw = read_json(folder / "config.json")
    if stored_method(raw):
        raise UsageError(
            f"{folder} is quantised already ({stored_method(raw)})",
            remedy="Quantise the original checkpoint.",
        )
    installed = discover()
    model = (
        resolve("model", settings.plugin, installed)
        if settings.plugin
        else detect_model(raw, installed)
    )
    device = open_device("cpu")
    import_paddle(settings.threads)
    backend = resolve("backend", BACKEND, installed)
    hooks = open_session([model, resolve("quant", settings.format, installed), backend])
    hooks.require_support(device)
    hooks.configure(RunConfig(device=device.label, threads=settings.threads))
    config = with_generation(hooks.read_config(raw), generation_config(folder))
    dtype = config.dtype if settings.dtype == "auto" else settings.dtype
    config = replace(config, dtype=dtype, compute_dtype="float32")
    specs = hooks.linear_layers(config)
    if not any(scheme_of(settings, spec)[0] for spec in specs):
        raise UsageError(
            f"no linear of {folder} would be quantised: {scheme_of(settings, specs[0])[1]}",
            remedy="Choose another --group-size, or leave --skip out.",
        )
    checkpoint = Checkpoint(folder)
    return Source(
        folder=folder,
        raw=raw,
        hooks=hooks,
        config=config,
        checkpoint=checkpoint,
        loading=plan_loading(checkpoint, hooks.weight_rules(config)),
        specs=specs,
    )


def _pieces(settings: QuantizeSettings, source: Source) -> list[list[int]]:
    length = min(settings.window, source.config.max_position_embeddings)
    documents = read_corpus(settings.calib or CALIBRATION, Tokenizer.load(source.folder))
    pieces = windows(documents, length, settings.tokens)
    vocabulary = source.config.vocab_size
    if max(map(max, pieces)) >= vocabulary:
        raise BadInput(
            f"the tokenizer has tokens outside the model's vocabulary of {vocabulary:,}",
            remedy="Tokenizer and model are not of one checkpoint.",
        )
    return pieces


def _calibrate(
    settings: QuantizeSettings,
    work: WorkFolder,
    source: Source,
    pieces: Sequence[Sequence[int]],
    progress: Progress,
) -> Pass:
    hooks, config = source.hooks, source.config
    quant_plan = hooks.plan_quant(config, source.specs, open_device("cpu"))
    with progress.bar("Quantising", len(source.specs), "linears") as advance:
        parts = CalibratingParts(
            source.checkpoint, source.loading, config, hooks, quant_plan, place=place
        )
        parts.plan = Plan(
            settings=settings,
            work=work,
            hooks=hooks,
            advance=advance,
            specs={spec.name: spec for spec in source.specs},
        )
        model = hooks.build_model(config, parts)
        parts.finish()
        left = run_calibration(model, config, pieces, keep_cache=bool(settings.kv_cache))
        work.flush()
    return left


def _kv_cache(settings: QuantizeSettings, left: Pass) -> tuple[Array | None, list[float]]:
    """Static scales for the cache that is wanted, and each layer's relative error."""
    if not settings.kv_cache:
        return None, []
    by = next((name for name in RANGES if name in settings.methods), "absmax")
    return cache_scales(left.cache, left.slots, settings.kv_cache, by)


def _write(
    work: WorkFolder,
    output: Path,
    source: Source,
    report: Mapping[str, Any],
    kv_scales: Array | None,
) -> None:
    """The output, complete or not there."""
    folder = work.folder / "output"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    hooks, config = source.hooks, source.config
    writer = Writer(
        folder,
        hooks.open_store(),
        source.checkpoint,
        source.loading,
        hooks.weight_rules(config),
        config,
    )
    schemes = {
        name: Scheme(**{**said["scheme"], "parts": ()}) for name, said in report["linears"].items()
    }
    by_layer: dict[int | None, list[LinearSpec]] = {}
    for spec in source.specs:
        if spec.name in schemes:
            by_layer.setdefault(spec.layer, []).append(spec)
    for number, (_, layer) in enumerate(by_layer.items()):
        writer.layer(number, layer, schemes, work)
    if kv_scales is not None:
        writer.cache(report["kv_cache"]["dtype"], kv_scales)
    writer.rest(schemes)
    named = {"dtype": config.dtype, "torch_dtype": config.dtype}
    writer.finish({**source.raw, **named}, source.folder)
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    folder.replace(output)
    work.remove()
