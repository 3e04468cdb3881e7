"""How fast a card reads its memory."""

from __future__ import annotations

import time

import paddle

from qinfer.cuda_ops.cuda import empty
from qinfer.cuda_ops.graphs import Card, Graph

ARRAY_BYTES = 512 << 20
"""Far beyond any card's cache."""

PASSES = 8


def read_bandwidth(card: Card) -> float:
    """Bytes a second, the best of a few replays of ``PASSES`` reads of one array."""
    array = empty([ARRAY_BYTES], "uint8", card.index)

    def read() -> None:
        for _ in range(PASSES):
            paddle._C_ops._run_custom_op("qinfer_cuda_read", array)

    read()
    card.wait()
    graph, best = Graph(card, read), float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        graph.replay()
        card.wait()
        best = min(best, time.perf_counter() - begin)
    return PASSES * ARRAY_BYTES / best
