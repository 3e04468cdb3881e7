"""Tables for people: the first column to the left, numbers to the right."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def table(rows: Rows) -> str:
    """Rows of as many cells each, the first being the heading, in aligned columns. In a terminal
    too narrow for them it is turned over, if that is narrower: a line for each column.
    """
    turned = list(zip(*rows, strict=True))
    if sys.stdout.isatty() and _width(rows) > shutil.get_terminal_size().columns:
        rows = min(rows, turned, key=_width)
    widths = _widths(rows)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _widths(rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _width(rows: Rows) -> int:
    widths = _widths(rows)
    return sum(widths) + 2 * (len(widths) - 1)
