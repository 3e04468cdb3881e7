"""Where qinfer keeps what it can make again: built operators and the demo checkpoint."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: $QINFER_CACHE, or the platform's own place. It need not exist yet."""
    chosen = os.environ.get("QINFER_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("qinfer", appauthor=False))
