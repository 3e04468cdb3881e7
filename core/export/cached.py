"""A checkpoint run by a backend that runs exports only: exported into the cache, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import qinfer
from qinfer.core.errors import BadCheckpoint
from qinfer.core.export.codec import to_json
from qinfer.core.export.make import exported_cache, fill_folder, maker
from qinfer.core.export.manifest import FORMAT
from qinfer.core.export.open import open_exported
from qinfer.core.loading import LoadedModel, Prepared
from qinfer.core.paths import cache_dir
from qinfer.core.session import Progress, Selected
from qinfer.core.store import make_once


def open_cached(
    prepared: Prepared,
    selected: Selected,
    progress: Progress,
    checked: Callable[[], object] = lambda: None,
) -> LoadedModel:
    """The checkpoint's export, made unless it is there and undamaged. Raises what exporting does,
    and BadCheckpoint where the cache cannot be written.
    """
    folder = cache_dir() / "exports" / _key(prepared)

    def make(*, again: bool) -> None:
        def fill(new: Path) -> None:
            if progress.note:
                progress.note("Exporting the model into the cache (once)")
            fill_folder(new, prepared, progress)

        make_once(folder, fill, force=again, progress=progress.note)

    # The plugins were chosen for the checkpoint; a context longer than its own is cut to that.
    selected = replace(selected, model=None, quant=None)
    longest = min(prepared.run.max_model_len, prepared.config.max_position_embeddings)
    run = replace(prepared.run, max_model_len=longest)
    checked()
    make(again=False)
    try:
        return open_exported(run, selected, folder)
    except BadCheckpoint:
        make(again=True)
        return open_exported(run, selected, folder)


def _key(prepared: Prepared) -> str:
    """A digest of everything an export depends on; files count by size and time of change."""
    import paddle

    weights = sorted(prepared.folder.iterdir())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    hooks = prepared.hooks
    content = {
        "versions": [FORMAT, qinfer.__version__, paddle.__version__],
        "files": [str(prepared.folder.resolve()), facts],
        "makers": [to_json(maker(hooks, kind)) for kind in ("model", "quant", "backend")],
        "device": prepared.device.kind,
        "config": to_json(replace(prepared.config, extra={})),
        "plan": to_json(prepared.plan),
        "cache": to_json(exported_cache(prepared)),
        "needs": to_json(hooks.plan_export(prepared.run)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
