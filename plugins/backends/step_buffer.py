"""A step's inputs on their way to a card: side by side, in one copy that nothing waits for.

They are pinned twice here, as one step's may be on the way while the next one's are filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from qinfer.core.types import SamplingInput, StepInput
from qinfer.cuda_ops.cuda import empty
from qinfer.cuda_ops.graphs import Card, view

ALIGNED = 16
"""Bytes every input's part of the buffer is a multiple of."""

DRAWS = {
    "temperature": "float32",
    "top_k": "int64",
    "top_p": "float32",
    "min_p": "float32",
    "uniform": "float32",
}
"""What a row is drawn by, and its type."""


class Continued(NamedTuple):
    """Tokens that the step before this one chooses: where ``rows`` [T] is not negative, that row of
    ``tokens``, on the card.
    """

    tokens: Tensor
    rows: NDArray[np.int64]

    def copy(self, card: Card, token_ids: Tensor) -> None:
        """Queue the copies to where they belong: one for all that lie one after the other."""
        at = np.flatnonzero(self.rows >= 0)
        rows = self.rows[at]
        breaks = np.flatnonzero((np.diff(at) != 1) | (np.diff(rows) != 1)) + 1
        to, source, each = token_ids.data_ptr(), self.tokens.data_ptr(), 8
        for start, end in pairwise([0, *breaks.tolist(), len(at)]):
            if end > start:
                first = source + int(rows[start]) * each
                card.copy(to + int(at[start]) * each, first, (end - start) * each)


@dataclass(frozen=True)
class _Part:
    name: str
    dtype: str
    shape: list[int]


class _Layout:
    """Where each part lies in a buffer of ``size`` bytes."""

    def __init__(self, parts: list[_Part]) -> None:
        self.places: list[tuple[_Part, int]] = []
        self.size = 0
        for part in parts:
            self.places.append((part, self.size))
            bytes_ = int(np.prod(part.shape)) * np.dtype(part.dtype).itemsize
            self.size += -(-bytes_ // ALIGNED) * ALIGNED

    def arrays(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The parts of the computer's memory."""
        return {p.name: np.ndarray(p.shape, p.dtype, memory, at) for p, at in self.places}

    def tensors(self, memory: Tensor) -> dict[str, Tensor]:
        """The parts of the card's."""
        return {p.name: view(memory, at, p.shape, p.dtype) for p, at in self.places if all(p.shape)}


class StepBuffer:
    """For steps of up to so many tokens and sequences, whose tensors keep their places.

    A sequence that is not there has length 0 and a token that is not there a negative slot.
    """

    def __init__(self, card: Card, tokens: int, sequences: int, max_blocks: int) -> None:
        layout = _Layout(
            [
                _Part("token_ids", "int64", [tokens]),
                _Part("positions", "int64", [tokens]),
                _Part("slot_mapping", "int64", [tokens]),
                _Part("logit_rows", "int64", [sequences]),
                _Part("query_starts", "int32", [sequences + 1]),
                _Part("seq_lens", "int32", [sequences]),
                *(_Part(name, dtype, [sequences]) for name, dtype in DRAWS.items()),
                _Part("block_tables", "int32", [sequences, max_blocks]),
            ]
        )
        self.card, self.is_decode = card, tokens == sequences
        self.on_card = empty([layout.size], "uint8", card.index)
        tensors = layout.tensors(self.on_card)
        self.draws = {name: tensors.pop(name) for name in DRAWS}
        self.tensors = StepInput(**tensors)
        self.memories = [card.pinned(layout.size) for _ in range(2)]
        self.sides = [layout.arrays(memory) for memory in self.memories]
        for memory, side in zip(self.memories, self.sides, strict=True):
            memory[:] = 0
            side["query_starts"][:] = np.arange(sequences + 1)
            side["logit_rows"][:] = np.arange(sequences)

    def upload(
        self,
        batch: StepInput | None,
        sampling: SamplingInput | None = None,
        before: Continued | None = None,
    ) -> None:
        """Fill in a batch (None: of nothing) and queue the copy; ``sampling`` where tokens are
        drawn.
        """
        self.memories.reverse()
        self.sides.reverse()
        side, memory = self.sides[0], self.memories[0]
        self._fill(side, batch)
        if sampling is not None:
            for name in DRAWS:
                given = getattr(sampling, name)
                side[name][: len(given)] = given
                side[name][len(given) :] = 0  # the likeliest
        self.card.copy(self.on_card.data_ptr(), memory.ctypes.data, self._filled(batch))
        if before is not None:
            before.copy(self.card, self.tensors.token_ids)

    def _filled(self, batch: StepInput | None) -> int:
        """Bytes up to the end of the last block table, as tables lie last; what is beyond, no
        sequence of this step reads.
        """
        size: int = self.on_card.shape[0]
        if batch is None or not batch.block_tables.size:
            return size
        tables = self.sides[0]["block_tables"]
        rows, width = batch.block_tables.shape
        unused: int = tables.size - (rows - 1) * tables.shape[1] - width
        return size - unused * tables.itemsize // ALIGNED * ALIGNED

    def _fill(self, side: dict[str, NDArray[Any]], batch: StepInput | None) -> None:
        tokens, rows = (0, 0) if batch is None else (len(batch.token_ids), len(batch.seq_lens))
        for name, missing in (("token_ids", 0), ("positions", 0), ("slot_mapping", -1)):
            side[name][tokens:] = missing
        side["seq_lens"][rows:] = 0
        if batch is not None:
            for name in ("token_ids", "positions", "slot_mapping"):
                side[name][:tokens] = getattr(batch, name)
            side["seq_lens"][:rows] = batch.seq_lens
            side["block_tables"][:rows, : batch.block_tables.shape[1]] = batch.block_tables
        if self.is_decode:  # which tokens belong to whom is always the same
            return
        starts, wanted = side["query_starts"], side["logit_rows"]
        starts[:], wanted[:] = 0, 0
        if batch is not None:
            starts[: rows + 1] = batch.query_starts
            starts[rows + 1 :] = batch.query_starts[rows]
            wanted[: len(batch.logit_rows)] = batch.logit_rows


class LooseBuffer:
    """For arrays of any size, whose tensors are overwritten by the next ones."""

    def __init__(self, card: Card) -> None:
        self.card, self.size = card, 0
        self.memories: list[NDArray[np.uint8]] = []
        self.on_card: Tensor = None

    def place(self, given: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Queue the copy; the arrays' tensors."""
        parts = [_Part(n, array.dtype.name, list(array.shape)) for n, array in given.items()]
        layout = _Layout(parts)
        self._hold(max(layout.size, ALIGNED))
        self.memories.reverse()
        memory = self.memories[0]
        for name, array in layout.arrays(memory).items():
            array[...] = given[name]
        self.card.copy(self.on_card.data_ptr(), memory.ctypes.data, layout.size)
        # A view has to have elements.
        empty_ones = {n: paddle.to_tensor(array) for n, array in given.items() if not array.size}
        return layout.tensors(self.on_card) | empty_ones

    def _hold(self, size: int) -> None:
        if size <= self.size:
            return
        self.card.wait()
        self.size = 2 * size
        self.memories = [self.card.pinned(self.size) for _ in range(2)]
        self.on_card = empty([self.size], "uint8", self.card.index)
