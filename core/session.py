"""From a run's settings to a loaded model with its engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qinfer.core.errors import UsageError
from qinfer.core.loading import (
    AUTO,
    KV_CACHE_DTYPES,
    LoadedModel,
    cache_layout,
    prepare,
    read_model,
)
from qinfer.core.registry.discovery import Installed, PluginRecord, discover
from qinfer.core.registry.selection import resolve
from qinfer.core.types import RunConfig

if TYPE_CHECKING:
    from qinfer.core.engine.engine import Engine
    from qinfer.core.text.tokenizer import Tokenizer

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
    """The plugins a run names, found in the metadata but not imported; ``model``, ``quant`` and
    ``backend`` are None where the folder decides.
    """

    installed: Installed
    model: PluginRecord | None
    quant: PluginRecord | None
    backend: PluginRecord | None
    observers: tuple[PluginRecord, ...]


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
        backend=None if run.backend == AUTO else resolve("backend", run.backend, installed),
        observers=tuple(resolve("observer", name, installed) for name in run.observers),
    )


def load_model(
    run: RunConfig,
    selected: Selected,
    folder: Path,
    progress: Progress,
    checked: Callable[[], object] = lambda: None,
) -> LoadedModel:
    """Read a checkpoint or an exported folder into memory through the selected plugins.

    Raises BadCheckpoint, BrokenPlugin or Unsupported; files are checked before anything is
    computed. ``checked`` is called in between, and may raise.
    """
    from qinfer.core.export.manifest import is_export
    from qinfer.core.export.open import open_exported

    if is_export(folder):
        return open_exported(run, selected, folder, checked)
    prepared = prepare(run, selected, folder)
    if prepared.hooks.runs_exports:
        from qinfer.core.export.cached import open_cached

        return open_cached(prepared, selected, progress, checked)
    checked()
    return read_model(prepared, progress)


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
    from qinfer.core.checkpoint.source import resolve_model
    from qinfer.core.demo.folder import DEMO_LABEL
    from qinfer.core.engine.engine import Engine, Limits
    from qinfer.core.engine.sizing import check_run, size_cache
    from qinfer.core.hardware.device import open_device
    from qinfer.core.rotary import first_row
    from qinfer.core.text.tokenizer import Tokenizer

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
        loaded.cache
        or cache_layout(hooks, config, loaded.plan, loaded.run.block_size, run.kv_cache_dtype),
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
