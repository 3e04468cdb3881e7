"""Mapped files on huge pages, in which a processor finds its way with fewer steps."""

from __future__ import annotations

import mmap
from contextlib import suppress


def ask_for_huge_pages(mapping: mmap.mmap) -> None:
    """Let the system read the mapped file in huge pages, where it and the file system have them.

    It does so as pages are touched through such a mapping. What was read or written by other means
    stays in the system's cache in small ones, as far as it likes.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
