"""Progress on stderr: bars and notes on a terminal, nothing elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class AnswerLine:
    """Whether an answer on standard output stands in the midst of a line."""

    is_open: bool = False


answer_line = AnswerLine()
"""Whoever prints an answer says it here, for the notes that come meanwhile."""


class TerminalProgress:
    """Bars and notes on stderr; bars only where that is a terminal."""

    def note(self, text: str) -> None:
        """Print one line, a line of its own also while an answer is shown in the same place."""
        if answer_line.is_open and _is_one_place():
            print(file=sys.stderr)  # noqa: T201
            answer_line.is_open = False
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def bar(self, text: str, total: int, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        """A bar over ``total`` of a unit that disappears when it is done."""
        if not sys.stderr.isatty():
            yield lambda amount: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        counted: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn(unit)]
        amount = [DownloadColumn()] if unit == "bytes" else counted
        columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(text, total=total)
            yield lambda done: progress.advance(task, done)


def _is_one_place() -> bool:
    """Whether standard output and standard error are the same terminal, pipe or file."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or no file at all
        return False


class NoProgress:
    """Reports nothing."""

    note: None = None

    @contextmanager
    def bar(self, text: str, total: int, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
        """A bar nobody sees."""
        yield lambda amount: None
