"""From a checkpoint folder to a model in memory, through the plugins of a session."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinfer.core.errors import BadCheckpoint
from qinfer.core.hardware.card_limits import check_sizes, choose_dtypes
from qinfer.core.registry.discovery import PluginRecord
from qinfer.core.registry.hooks import Hooks
from qinfer.core.registry.selection import choose_quant, detect_model, open_session, resolve
from qinfer.core.types import (
    CacheSpec,
    DeviceInfo,
    LinearSpec,
    LoadStats,
    ModelConfig,
    QuantPlan,
    RunConfig,
)

if TYPE_CHECKING:
    from qinfer.core.checkpoint.files import Checkpoint
    from qinfer.core.checkpoint.layout import LoadPlan
    from qinfer.core.session import Progress, Selected

AUTO = "auto"
BACKEND = "dynamic"
"""What runs a checkpoint when nobody says."""
KV_CACHE_DTYPES = {AUTO: "", "int8": "int8", "fp8": "float8_e4m3fn"}
"""What the user says -> the cache's dtype; "" leaves it to the scheme."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checkpoint that has been checked and planned, and none of whose weights were read."""

    run: RunConfig
    folder: Path
    hooks: Hooks
    config: ModelConfig
    device: DeviceInfo
    generation: Mapping[str, Any]
    linears: Sequence[LinearSpec]
    checkpoint: Checkpoint
    loading: LoadPlan
    plan: QuantPlan


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory with everything the engine needs to know of it; ``cache`` is that of an
    exported one, which is not to be chosen any more.
    """

    run: RunConfig
    folder: Path
    hooks: Hooks
    config: ModelConfig
    device: DeviceInfo
    generation: Mapping[str, Any]
    linears: Sequence[LinearSpec]
    model: Any
    plan: QuantPlan
    stats: LoadStats
    cache: CacheSpec | None = None


def prepare(run: RunConfig, selected: Selected, folder: Path) -> Prepared:
    """Load the plugins of a checkpoint, check its files and plan how to read them.

    Raises BadCheckpoint, BrokenPlugin or Unsupported.
    """
    from qinfer.core.checkpoint.layout import plan_loading
    from qinfer.core.checkpoint.quantised import check_agreement, open_stored
    from qinfer.core.config import generation_config
    from qinfer.core.hardware.device import open_device
    from qinfer.core.hardware.start_paddle import import_paddle
    from qinfer.core.json_file import read_json

    raw = read_json(folder / "config.json")
    model = selected.model or detect_model(raw, selected.installed)
    device = open_device(run.device)
    import_paddle(run.threads, device.label)
    run, hooks = _open_hooks(replace(run, model=str(folder)), selected, model, raw, device)
    generation = generation_config(folder)
    config = _read_config(run, hooks, raw, generation, device)
    linears = hooks.linear_layers(config)
    if device.kind == "gpu":
        check_sizes(config, linears)
    plan = hooks.plan_quant(config, linears, device)
    files = _files(run, hooks, config)
    checkpoint, stored = open_stored(raw, files, hooks, config)
    if stored.kv_cache:
        plan = replace(plan, kv_cache=stored.kv_cache, kv_scales=stored.kv_scales)
    check_agreement(raw, checkpoint, selected.quant, hooks.record("quant"))
    loading = plan_loading(checkpoint, hooks.weight_rules(config), stored.unused)
    return Prepared(
        run=run,
        folder=folder,
        hooks=hooks,
        config=config,
        device=device,
        generation=generation,
        linears=linears,
        checkpoint=checkpoint,
        loading=loading,
        plan=plan,
    )


def _open_hooks(
    run: RunConfig,
    selected: Selected,
    model: PluginRecord,
    raw: Mapping[str, Any],
    device: DeviceInfo,
) -> tuple[RunConfig, Hooks]:
    """The plugins of a run, told its settings, in which their names and all sizes are then."""
    from qinfer.core.engine.sizing import choose_sizes

    quant = choose_quant(raw, selected.quant, selected.installed)
    backend = selected.backend or resolve("backend", BACKEND, selected.installed)
    hooks = open_session([model, quant, backend, *selected.observers])
    _check_fit(hooks, raw, model)
    run = replace(
        run, plugin=model.name, quant=quant.name, backend=backend.name, device=device.label
    )
    run = choose_sizes(run, device.kind)
    hooks.require_support(device)
    hooks.configure(run)
    return run, hooks


def _read_config(
    run: RunConfig,
    hooks: Hooks,
    raw: Mapping[str, Any],
    generation: Mapping[str, Any],
    device: DeviceInfo,
) -> ModelConfig:
    """The model's config, with what the device computes in and the run's shorter context."""
    from qinfer.core.config import with_generation

    config = with_generation(hooks.read_config(raw), generation)
    dtype, compute_dtype = choose_dtypes(config.dtype, run.dtype, device)
    longest = config.max_position_embeddings
    return replace(
        config,
        dtype=dtype,
        compute_dtype=compute_dtype,
        max_position_embeddings=min(run.max_model_len or longest, longest),
    )


def _files(run: RunConfig, hooks: Hooks, config: ModelConfig) -> Checkpoint:
    """The run's folder, or random numbers in its shapes."""
    from qinfer.core.checkpoint.files import Checkpoint
    from qinfer.core.checkpoint.random_checkpoint import RandomCheckpoint

    folder = Path(run.model)
    if run.random_weights:
        return RandomCheckpoint(folder, hooks.weight_rules(config), config.dtype)
    return Checkpoint(folder)


def read_model(prepared: Prepared, progress: Progress) -> LoadedModel:
    """Read the weights of a checkpoint and build its model."""
    from qinfer.core.checkpoint.ahead import THREADS
    from qinfer.core.checkpoint.loader import StreamedParts
    from qinfer.core.hardware.place import place

    config, hooks, loading = prepared.config, prepared.hooks, prepared.loading
    begin = time.perf_counter()
    # A processor has no time to spare while it packs; a card packs by itself.
    ahead = THREADS if prepared.device.kind == "gpu" else 0
    with progress.bar("Loading weights", loading.total_bytes) as advance:
        parts = StreamedParts(
            prepared.checkpoint,
            loading,
            config,
            hooks,
            prepared.plan,
            place=place,
            on_tensor=advance,
            ahead=ahead,
        )
        try:
            model = hooks.build_model(config, parts)
        finally:
            parts.close()
    parts.finish()
    stats = parts.stats(time.perf_counter() - begin)
    hooks.loaded(stats)
    return LoadedModel(
        run=prepared.run,
        folder=prepared.folder,
        hooks=hooks,
        config=config,
        device=prepared.device,
        generation=prepared.generation,
        linears=prepared.linears,
        model=model,
        plan=prepared.plan,
        stats=stats,
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
