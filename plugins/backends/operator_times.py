"""How long each operator of a step takes on a card, beside the bytes it has to move.

A step is computed operator by operator and each call's arguments are kept. Calls of one operator
over the same shapes are then recorded as one graph, and its replays timed: every call has the
weight of its own layer, so that these come from memory as in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from paddle import Tensor

from qinfer.core.errors import UsageError
from qinfer.core.types import LayerCache, OperatorTime
from qinfer.cuda_ops.graphs import Card, Graph
from qinfer.cuda_ops.table import TABLE

REPLAYS = 9
LEAST_CALLS = 8
"""Calls in a graph, so that starting it does not count."""

BY_ROWS = ("embed", "take_rows")
"""Operators that read as much of a table as they give."""

ROTARY = ("attend", "rotary_kv_write")
"""Operators whose second argument is a table of which they read a row for each token."""


@dataclass(frozen=True)
class _Call:
    name: str
    run: Callable[[], Any]
    given: tuple[Any, ...]
    result: Any


def operator_times(step: Callable[[], Any], card: Card, cached_tokens: int) -> list[OperatorTime]:
    """Those of the operators ``step`` calls, whose sequences have ``cached_tokens`` together, the
    longest altogether first. Raises UsageError for an exported program, which calls its own.
    """
    groups: dict[tuple[str, str], list[_Call]] = {}
    with _watched() as calls:
        step()
    if {call.name for call in calls} <= {"argmax"}:  # the runner's own
        raise UsageError(
            "an exported program calls its operators by itself, where they cannot be timed",
            remedy="Use --backend dynamic, whose operators are the same.",
        )
    for call in calls:
        groups.setdefault((call.name, _shapes(call)), []).append(call)
    found = [
        OperatorTime(
            name=name,
            shapes=shapes,
            calls=len(group),
            seconds=_seconds(group, card),
            nbytes=_moved(group[0], cached_tokens),
        )
        for (name, shapes), group in groups.items()
    ]
    return sorted(found, key=lambda one: -one.seconds * one.calls)


@contextmanager
def _watched() -> Iterator[list[_Call]]:
    """Collects calls of the table's operators; what they call themselves is part of them."""
    calls: list[_Call] = []
    inside = [False]
    runs = {entry: entry.run for entry in TABLE.values()}

    def watch(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **options: Any) -> Any:
            if inside[0]:
                return run(*args, **options)
            inside[0] = True
            try:
                result = run(*args, **options)
            finally:
                inside[0] = False
            given = (*args, *options.values())
            given = given if name not in ROTARY else (given[0], *given[2:])
            calls.append(_Call(name, lambda: run(*args, **options), given, result))
            return result

        return watching

    for entry, run in runs.items():
        entry.run = watch(entry.name, run)
    try:
        yield calls
    finally:
        for entry, run in runs.items():
            entry.run = run


def _seconds(group: list[_Call], card: Card) -> float:
    """One call's, the median over replays."""
    again = -(-LEAST_CALLS // len(group))
    graph = Graph(card, lambda: [call.run() for _ in range(again) for call in group])
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        card.wait()
        begin = time.perf_counter()
        graph.replay()
        card.wait()
        times.append(time.perf_counter() - begin)
    return median(times) / (again * len(group))


def _moved(call: _Call, cached_tokens: int) -> int:
    """Bytes that a call reads and writes, each once; of a cache those of the tokens it has."""
    results = sum(map(_nbytes, _tensors([call.result])))
    if call.name in BY_ROWS:
        return 2 * results
    read = sum(map(_nbytes, _tensors(call.given)))
    for cache in call.given:
        if isinstance(cache, LayerCache):
            slots = int(cache.keys.shape[0] * cache.keys.shape[1])
            read += sum(map(_nbytes, _tensors(vars(cache).values()))) * cached_tokens // slots
    return read + results


def _tensors(given: Iterable[Any]) -> Iterator[Tensor]:
    """What arguments hold; a layer has its tensors as attributes."""
    for one in given:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, tuple | list):
            yield from _tensors(one)
        elif held := getattr(one, "held", None):
            yield from _tensors(vars(held).values())
        elif callable(one):
            yield from _tensors(getattr(one, "__dict__", {}).values())


def _nbytes(tensor: Tensor) -> int:
    return int(tensor.size) * int(tensor.element_size())


def _shapes(call: _Call) -> str:
    """The result's shape and the largest argument's, which is the weight where there is one."""
    result = next(_tensors([call.result]), None)
    largest = max(_tensors(call.given), key=_nbytes, default=None)
    return " ".join("x".join(map(str, t.shape)) for t in (result, largest) if t is not None)
