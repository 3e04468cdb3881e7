"""``quantize``: a model, a scheme and calibration data in; a quantised checkpoint out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.layout import LoadPlan, plan_loading
from qinfer.core.checkpoint.source import resolve_model
from qinfer.core.config import generation_config, read_json, with_generation
from qinfer.core.corpus import CALIBRATION, read_corpus, windows
from qinfer.core.device import import_paddle, open_device, place
from qinfer.core.discovery import discover
from qinfer.core.errors import BadInput, QinferError, UsageError
from qinfer.core.hooks import Hooks
from qinfer.core.quantize.calibrate import CalibratingParts, Plan
from qinfer.core.quantize.forward import Pass, run_calibration
from qinfer.core.quantize.kv_cache import cache_scales
from qinfer.core.quantize.output import Writer
from qinfer.core.quantize.rounding import RANGES
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.quantize.work import WorkFolder
from qinfer.core.selection import detect_model, open_session, resolve, stored_method
from qinfer.core.session import Progress
from qinfer.core.tokenizer import Tokenizer
from qinfer.core.types import Array, LinearSpec, ModelConfig, Scheme

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
    source = resolve_model(settings.model or None, progress=progress.note)
    work = WorkFolder(output)
    try:
        hooks, config, raw = _open(settings, source)
        pieces = _pieces(settings, source, config)
        if work.open(settings, source, restart=restart) and progress.note:
            progress.note(f"Continuing {work.folder}")
        checkpoint = Checkpoint(source)
        loading = plan_loading(checkpoint, hooks.weight_rules(config))
        specs = hooks.linear_layers(config)
        left = _calibrate(
            settings, work, hooks, config, checkpoint, loading, specs, pieces, progress
        )
        kv_scales, kv_errors = _kv_cache(settings, left)
        report = {
            "settings": {key: str(value) for key, value in asdict(settings).items()},
            "tokens": sum(map(len, pieces)),
            "seconds": time.perf_counter() - begin,
            "linears": work.report(),
            "skipped": work.skipped,
            "kv_cache": {"dtype": settings.kv_cache, "errors": kv_errors},
        }
        _write(
            work, output, hooks, config, raw, source, checkpoint, loading, specs, report, kv_scales
        )
    except OSError as error:
        raise QinferError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Free disk space, or name a folder on another disk; the same command "
            "continues what is done.",
        ) from error
    return report


def _open(settings: QuantizeSettings, source: Path) -> tuple[Hooks, ModelConfig, Mapping[str, Any]]:
    raw = read_json(source / "config.json")
    if stored_method(raw):
        raise UsageError(
            f"{source} is quantised already ({stored_method(raw)})",
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
    hooks = open_session([model, resolve("quant", settings.format, installed)])
    hooks.require_support(device)
    config = with_generation(hooks.read_config(raw), generation_config(source))
    dtype = config.dtype if settings.dtype == "auto" else settings.dtype
    return hooks, replace(config, dtype=dtype, compute_dtype="float32"), raw


def _pieces(settings: QuantizeSettings, source: Path, config: ModelConfig) -> list[list[int]]:
    length = min(settings.window, config.max_position_embeddings)
    documents = read_corpus(settings.calib or CALIBRATION, Tokenizer.load(source))
    pieces = windows(documents, length, settings.tokens)
    if max(map(max, pieces)) >= config.vocab_size:
        raise BadInput(
            f"the tokenizer has tokens outside the model's vocabulary of {config.vocab_size:,}",
            remedy="Tokenizer and model are not of one checkpoint.",
        )
    return pieces


def _calibrate(
    settings: QuantizeSettings,
    work: WorkFolder,
    hooks: Hooks,
    config: ModelConfig,
    checkpoint: Checkpoint,
    loading: LoadPlan,
    specs: Sequence[LinearSpec],
    pieces: Sequence[Sequence[int]],
    progress: Progress,
) -> Pass:
    quant_plan = hooks.plan_quant(config, specs, open_device("cpu"))
    with progress.bar("Quantising", len(specs), "linears") as advance:
        parts = CalibratingParts(checkpoint, loading, config, hooks, quant_plan, place=place)
        parts.plan = Plan(
            settings=settings,
            work=work,
            hooks=hooks,
            advance=advance,
            specs={spec.name: spec for spec in specs},
        )
        model = hooks.build_model(config, parts)
        parts.finish()
        left = run_calibration(model, config, pieces)
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
    hooks: Hooks,
    config: ModelConfig,
    raw: Mapping[str, Any],
    source: Path,
    checkpoint: Checkpoint,
    loading: LoadPlan,
    specs: Sequence[LinearSpec],
    report: Mapping[str, Any],
    kv_scales: Array | None,
) -> None:
    """The output, complete or not there."""
    folder = work.folder / "output"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    writer = Writer(
        folder, hooks.open_store(), checkpoint, loading, hooks.weight_rules(config), config
    )
    schemes = {
        name: Scheme(**{**said["scheme"], "parts": ()}) for name, said in report["linears"].items()
    }
    by_layer: dict[int | None, list[LinearSpec]] = {}
    for spec in specs:
        if spec.name in schemes:
            by_layer.setdefault(spec.layer, []).append(spec)
    for number, (_, layer) in enumerate(by_layer.items()):
        writer.layer(number, layer, schemes, work)
    if kv_scales is not None:
        writer.cache(report["kv_cache"]["dtype"], kv_scales)
    writer.rest(schemes)
    writer.finish({**raw, "dtype": config.dtype, "torch_dtype": config.dtype}, source)
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    folder.replace(output)
    work.remove()
