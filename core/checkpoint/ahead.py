"""Parameters assembled ahead of their use, while those before them are packed and placed."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from qinfer.core.checkpoint.assemble import assemble
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.layout import Pick

THREADS = 8
"""Reading and checking keep up with a GPU's bus then."""

MOST_BYTES = 512 << 20
"""Bytes of parameters that are read ahead; one may be larger."""


class Ahead:
    """``assemble`` for the picks of a plan by their targets, in whichever order they are asked for.

    With ``threads`` the next ones of the plan's order are made meanwhile; without, none are. Errors
    come where the parameter is asked for. ``close`` when no more are.
    """

    def __init__(self, checkpoint: Checkpoint, picks: Mapping[str, Pick], threads: int) -> None:
        self._checkpoint = checkpoint
        self._later = list(picks.items())[::-1]
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._made: dict[str, Future[NDArray[Any]]] = {}
        self._asked: set[str] = set()
        self._bytes = 0

    def get(self, target: str, pick: Pick) -> NDArray[Any]:
        """The parameter, as ``assemble`` makes it; each is handed out once."""
        self._asked.add(target)
        future = self._made.pop(target, None)
        if future is not None:
            self._bytes -= pick.nbytes
        self._refill()
        return assemble(self._checkpoint, pick) if future is None else future.result()

    def close(self) -> None:
        """Wait for what is being made, and drop it."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._made.clear()

    def _refill(self) -> None:
        while self._pool and self._later and self._bytes < MOST_BYTES:
            target, pick = self._later.pop()
            held = (self._checkpoint.stored(name) is None for name in pick.rule.source)
            if target not in self._asked and all(held):
                self._bytes += pick.nbytes
                self._made[target] = self._pool.submit(assemble, self._checkpoint, pick)
