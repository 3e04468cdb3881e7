"""From a run's settings to a loaded model with its engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qinfer.core.discovery import Installed, PluginRecord, discover
from qinfer.core.errors import BadCheckpoint, Unsupported, UsageError
from qinfer.core.hooks import Hooks
from qinfer.core.selection import choose_quant, detect_model, open_session, resolve
from qinfer.core.types import CacheSpec, DeviceInfo, LoadStats, ModelConfig, QuantPlan, RunConfig

if TYPE_CHECKING:
    from qinfer.core.checkpoint.files import Checkpoint
    from qinfer.core.checkpoint.layout import LoadPlan
    from qinfer.core.engine.engine import Engine
    from qinfer.core.tokenizer import Tokenizer

AUTO = "auto"
KV_CACHE_DTYPES = {AUTO: "", "int8": "int8", "fp8": "float8_e4m3fn"}
"""What the user says -> the cache's dtype; "" leaves it to the scheme."""
DTYPES = (AUTO, "bfloat16", "float16", "float32")


class Progress(Protocol):
    """Where long work reports to: a bar on a terminal, or nothing."""

    @property
    def note(self) -> Callable[[str], None] | None:
        """Takes a line of information; None where nobody reads it."""

    def bar(self, text: str, total: int, unit: str = "bytes") -> AbstractContextManager[Any]:
        """A context whose value is called with the amount done since the last call."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The plugins a run names, found in the metadata but not imported; ``model`` and ``quant`` are
    None where a config.json decides.
    """

    installed: Installed
    model: PluginRecord | None
    quant: PluginRecord | None
    backend: PluginRecord
    observers: tuple[PluginRecord, ...]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory with everything the engine needs to know of it."""

    run: RunConfig
    folder: Path
    hooks: Hooks
    config: ModelConfig
    device: DeviceInfo
    generation: Mapping[str, Any]
    model: Any
    plan: QuantPlan
    stats: LoadStats


def select(run: RunConfig) -> Selected:
    """Resolve every plugin the run names. Imports none of them; cheap enough to do first."""
    for name, choices in (("dtype", DTYPES), ("kv_cache_dtype", tuple(KV_CACHE_DTYPES))):
        if (said := getattr(run, name)) not in choices:
            known = ", ".join(choices)
            raise UsageError(f"unknown {name} {said!r}", remedy=f"Use one of {known}.")
    installed = discover()
    return Selected(
        installed=installed,
        model=resolve("model", run.plugin, installed) if run.plugin else None,
        quant=None if run.quant == AUTO else resolve("quant", run.quant, installed),
        backend=resolve("backend", run.backend, installed),
        observers=tuple(resolve("observer", name, installed) for name in run.observers),
    )


def load_model(
    run: RunConfig,
    selected: Selected,
    folder: Path,
    progress: Progress,
    checked: Callable[[], object] = lambda: None,
) -> LoadedModel:
    """Read a checkpoint folder into memory through the selected plugins.

    Raises BadCheckpoint, BrokenPlugin or Unsupported; files are checked before anything is
    computed. ``checked`` is called in between, and may raise.
    """
    from qinfer.core.checkpoint.files import Checkpoint
    from qinfer.core.checkpoint.layout import plan_loading
    from qinfer.core.checkpoint.quantised import check_agreement, open_stored
    from qinfer.core.checkpoint.random_checkpoint import RandomCheckpoint
    from qinfer.core.config import generation_config, read_json, with_generation
    from qinfer.core.device import import_paddle, open_device
    from qinfer.core.engine.sizing import choose_sizes

    raw = read_json(folder / "config.json")
    record = selected.model or detect_model(raw, selected.installed)
    device = open_device(run.device)
    import_paddle(run.threads, device.label)
    quant = choose_quant(raw, selected.quant, selected.installed)
    hooks = open_session([record, quant, selected.backend, *selected.observers])
    _check_fit(hooks, raw, record)
    run = replace(run, model=str(folder), plugin=record.name, quant=quant.name, device=device.label)
    run = choose_sizes(run, device.kind)
    hooks.require_support(device)
    hooks.configure(run)
    generation = generation_config(folder)
    config = with_generation(hooks.read_config(raw), generation)
    dtype, compute_dtype = choose_dtypes(config.dtype, run.dtype, device)
    config = replace(
        config,
        dtype=dtype,
        compute_dtype=compute_dtype,
        max_position_embeddings=min(
            run.max_model_len or config.max_position_embeddings, config.max_position_embeddings
        ),
    )
    plan = hooks.plan_quant(config, hooks.linear_layers(config), device)
    if run.random_weights:
        files: Checkpoint = RandomCheckpoint(folder, hooks.weight_rules(config), config.dtype)
    else:
        files = Checkpoint(folder)
    checkpoint, stored = open_stored(raw, files, hooks, config)
    if stored.kv_cache:
        plan = replace(plan, kv_cache=stored.kv_cache, kv_scales=stored.kv_scales)
    check_agreement(raw, checkpoint, selected.quant, quant)
    loading = plan_loading(checkpoint, hooks.weight_rules(config), stored.unused)
    checked()
    model, stats = _build(checkpoint, loading, config, hooks, plan, progress, device)
    hooks.loaded(stats)
    return LoadedModel(
        run=run,
        folder=folder,
        hooks=hooks,
        config=config,
        device=device,
        generation=generation,
        model=model,
        plan=plan,
        stats=stats,
    )


def choose_dtypes(own: str, asked: str, device: DeviceInfo) -> tuple[str, str]:
    """What parameters are rounded to and what is computed in, from the checkpoint's own dtype and
    the one asked for. Raises Unsupported for one a GPU does not compute in.
    """
    dtype = own if asked == "auto" else asked
    if device.kind == "cpu":
        return dtype, device.compute_dtypes[0]
    if dtype in device.compute_dtypes:
        return dtype, dtype
    if asked != "auto":
        known = " or ".join(device.compute_dtypes)
        raise Unsupported(
            f"the GPU operators do not compute in {dtype}",
            remedy=f"Use --dtype {known}, or --device cpu.",
        )
    return device.compute_dtypes[0], device.compute_dtypes[0]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A loaded model with the engine that runs it."""

    loaded: LoadedModel
    engine: Engine
    tokenizer: Tokenizer
    label: str
    header: list[str]


def open_engine(run: RunConfig, selected: Selected, progress: Progress) -> Opened:
    """Find the model ``run`` names, load it and start an engine over it."""
    from qinfer.core.checkpoint.demo import DEMO_LABEL
    from qinfer.core.checkpoint.source import resolve_model
    from qinfer.core.device import open_device
    from qinfer.core.engine.engine import Engine, Limits
    from qinfer.core.engine.sizing import check_run, size_cache
    from qinfer.core.rotary import first_row
    from qinfer.core.tokenizer import Tokenizer

    check_run(run)
    folder = resolve_model(run.model or None, progress=progress.note)
    # A vocabulary takes half a second to read, which passes while Paddle is imported.
    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(Tokenizer.load, folder)
        loaded = load_model(run, selected, folder, progress, checked=reading.result)
    tokenizer = reading.result()
    config, hooks = loaded.config, loaded.hooks
    # What is free is measured again: the weights are in memory now.
    cache, max_model_len = size_cache(
        cache_layout(hooks, config, loaded.plan, loaded.run.block_size, run.kv_cache_dtype),
        loaded.run,
        config.max_position_embeddings,
        open_device(run.device).memory_free,
        loaded.device.kind,
    )
    limits = Limits(
        max_model_len=max_model_len,
        vocab_size=config.vocab_size,
        eos_token_ids=frozenset((*config.eos_token_ids, *tokenizer.eos_token_ids)),
        first_row=partial(first_row, config),
    )
    runner = hooks.open_runner(loaded.model, config, cache, loaded.run)
    return Opened(
        loaded=loaded,
        engine=Engine(runner, cache, loaded.run, limits, tokenizer, hooks),
        tokenizer=tokenizer,
        label=run.model or DEMO_LABEL,
        header=hooks.report_header(loaded.run),
    )


def cache_layout(
    hooks: Hooks, config: ModelConfig, plan: QuantPlan, block_size: int, asked: str = AUTO
) -> CacheSpec:
    """The KV cache's format: as asked (a name in KV_CACHE_DTYPES), else the quant scheme's choice,
    else the model's own precision. Static scales are those of the plan, for its dtype alone.

    A float16 model's is the compute dtype, which can hold it.
    """
    own = config.dtype if config.dtype == "bfloat16" else config.compute_dtype
    chosen = hooks.cache_spec(config, plan) or CacheSpec(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=plan.kv_cache or own,
        block_size=block_size,
        scales=plan.kv_scales,
    )
    dtype = KV_CACHE_DTYPES[asked] or chosen.dtype
    return replace(chosen, dtype=dtype, scales=chosen.scales if dtype == chosen.dtype else None)


def _check_fit(hooks: Hooks, raw: Mapping[str, Any], record: PluginRecord) -> None:
    """Refuse a plugin that was named for a checkpoint of another family."""
    info = hooks.plugin("model")
    listed = raw.get("architectures")
    architectures: Sequence[Any] = listed if isinstance(listed, list) else []
    if raw.get("model_type") in info.model_types or set(info.architectures) & set(architectures):
        return
    raise BadCheckpoint(
        f"plugin {record.reference} reads model_type {', '.join(info.model_types) or 'nothing'}, "
        f"and the checkpoint's config.json has model_type {raw.get('model_type')!r} and "
        f"architectures {architectures}",
        remedy="Leave out --plugin to have it chosen, or see qinfer list-plugins.",
    )


def _build(
    checkpoint: Checkpoint,
    loading: LoadPlan,
    config: ModelConfig,
    hooks: Hooks,
    plan: QuantPlan,
    progress: Progress,
    device: DeviceInfo,
) -> tuple[Any, LoadStats]:
    from qinfer.core.checkpoint.ahead import THREADS
    from qinfer.core.checkpoint.loader import StreamedParts
    from qinfer.core.device import place

    begin = time.perf_counter()
    # A processor has no time to spare while it packs; a card packs by itself.
    ahead = THREADS if device.kind == "gpu" else 0
    with progress.bar("Loading weights", loading.total_bytes) as advance:
        parts = StreamedParts(
            checkpoint, loading, config, hooks, plan, place=place, on_tensor=advance, ahead=ahead
        )
        try:
            model = hooks.build_model(config, parts)
        finally:
            parts.close()
    parts.finish()
    return model, parts.stats(time.perf_counter() - begin)
