"""The files of a checkpoint besides its weights."""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path

COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".md")
LARGEST = 64 * 2**20


def copy_companions(source: Path, target: Path, leave_out: Container[str]) -> None:
    """Copy config, tokenizer and the like, but no weights, no index of them, and nothing large."""
    for path in source.iterdir():
        known = path.suffix in COPIED and path.name not in leave_out and path.is_file()
        if known and "safetensors" not in path.name and path.stat().st_size <= LARGEST:
            shutil.copyfile(path, target / path.name)
