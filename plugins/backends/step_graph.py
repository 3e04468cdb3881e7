"""One size of step as a CUDA graph, with the inputs it reads and the answers it gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from paddle import Tensor

from qinfer.core.types import SamplingInput, StepInput
from qinfer.cuda_ops.cuda import empty
from qinfer.cuda_ops.graphs import Card, Graph, view
from qinfer.cuda_ops.ops import argmax, sample

ALIGNED = 16
"""Bytes every input's part of the buffer is a multiple of."""

PROMPT_TOKENS = [*range(64, 257, 64), *range(384, 1025, 128), *range(1280, 2049, 256)]
"""Tokens that steps with prompts are filled up to. With more, starting operators one by one costs
nothing: the card takes longer for each."""

PROMPT_SEQUENCES = [1, 4, 16, 64, 256]


@dataclass(frozen=True, order=True)
class StepSize:
    """The tokens and sequences a graph is for; as many of both are one token of each. ``samples``:
    its tokens are drawn, otherwise they are the likeliest.
    """

    tokens: int
    sequences: int
    samples: bool = False

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one token."""
        return self.tokens == self.sequences


def decode_sizes(most: int) -> list[int]:
    """Batch sizes that get a graph: 1, 2, 4, then eights up to 64 and sixteens up to ``most``."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, most + 16, 16)]
    return [size for size in sizes if size < most] + [most]


def prompt_size(tokens: int, sequences: int) -> StepSize | None:
    """The size to fill such a step up to; None if it is too large to gain from a graph."""
    at, row = bisect_left(PROMPT_TOKENS, tokens), bisect_left(PROMPT_SEQUENCES, sequences)
    if at == len(PROMPT_TOKENS) or row == len(PROMPT_SEQUENCES):
        return None
    size = StepSize(PROMPT_TOKENS[at], PROMPT_SEQUENCES[row])
    return None if size.tokens <= size.sequences else size


class Continued(NamedTuple):
    """Tokens that a step before this one chooses: ``rows`` [S] of ``tokens``, on the card."""

    tokens: Tensor
    rows: NDArray[np.int64]


class StepGraph:
    """The graph of one size of step with its inputs and outputs, which keep their places.

    A sequence that is not there has length 0 and a token that is not there a negative slot: they
    read and write nothing.
    """

    def __init__(
        self, card: Card, model: Callable[[StepInput], Tensor], size: StepSize, max_blocks: int
    ) -> None:
        self.card, self.size = card, size
        self.inputs = StepBuffer(card, size, max_blocks)

        def compute() -> tuple[Tensor, Tensor]:
            logits = model(self.inputs.tensors)
            return logits, self._choose(logits)

        self.inputs.upload(None)
        compute()  # loads kernels and plans products, which a recording must not do
        card.wait()
        self.graph = Graph(card, compute)

    def begin(
        self, batch: StepInput, sampling: SamplingInput, before: Continued | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queue a step; its logits [sequences of the size, vocab_size] and tokens, which the next
        step of this size overwrites.
        """
        self.inputs.upload(batch, sampling if self.size.samples else None, before)
        return self.graph.replay()

    def _choose(self, logits: Tensor) -> Tensor:
        if not self.size.samples:
            return argmax(logits)
        return sample(logits, **self.inputs.draws, shortlist=0)


@dataclass(frozen=True)
class _Part:
    name: str
    dtype: str
    shape: list[int]


DRAWS = {
    "temperature": "float32",
    "top_k": "int64",
    "top_p": "float32",
    "min_p": "float32",
    "uniform": "float32",
}
"""What a row is drawn by, and its type."""


class StepBuffer:
    """A step's inputs side by side: on the card as tensors, and twice pinned here, as one may be on
    its way while the next step's are filled in.
    """

    def __init__(self, card: Card, size: StepSize, max_blocks: int) -> None:
        parts = [
            _Part("token_ids", "int64", [size.tokens]),
            _Part("positions", "int64", [size.tokens]),
            _Part("slot_mapping", "int64", [size.tokens]),
            _Part("logit_rows", "int64", [size.sequences]),
            _Part("query_starts", "int32", [size.sequences + 1]),
            _Part("seq_lens", "int32", [size.sequences]),
            *(_Part(name, dtype, [size.sequences]) for name, dtype in DRAWS.items()),
            _Part("block_tables", "int32", [size.sequences, max_blocks]),
        ]
        offsets, total = [], 0
        for part in parts:
            offsets.append(total)
            bytes_ = int(np.prod(part.shape)) * np.dtype(part.dtype).itemsize
            total += -(-bytes_ // ALIGNED) * ALIGNED
        self.card, self.size = card, size
        self.on_card = empty([total], "uint8", card.index)
        self.sides = [_Pinned(card.pinned(total), parts, offsets) for _ in range(2)]
        tensors = {
            part.name: view(self.on_card, offset, part.shape, part.dtype)
            for part, offset in zip(parts, offsets, strict=True)
        }
        draws = {name: tensors.pop(name) for name in DRAWS}
        self.tensors, self.draws = StepInput(**tensors), draws
        for side in self.sides:
            side.arrays["query_starts"][:] = np.arange(size.sequences + 1)
            side.arrays["logit_rows"][:] = np.arange(size.sequences)

    def upload(
        self,
        batch: StepInput | None,
        sampling: SamplingInput | None = None,
        before: Continued | None = None,
    ) -> None:
        """Fill in a batch of up to this size (None: of none) and queue the copy. Tokens that go on
        from another step are copied on the card.
        """
        self.sides.reverse()
        side = self.sides[0]
        side.fill(batch, self.size)
        if sampling is not None:
            for name in DRAWS:
                given = getattr(sampling, name)
                side.arrays[name][: len(given)] = given
                side.arrays[name][len(given) :] = 0  # the likeliest
        self.card.copy(self.on_card.data_ptr(), side.memory.ctypes.data, side.memory.nbytes)
        if before is not None:
            self._continue(before)

    def _continue(self, before: Continued) -> None:
        """One copy for each run of rows that follow each other."""
        to, source, each = self.tensors.token_ids.data_ptr(), before.tokens.data_ptr(), 8
        breaks = np.flatnonzero(np.diff(before.rows) != 1) + 1
        for start, end in pairwise([0, *breaks.tolist(), len(before.rows)]):
            first = source + int(before.rows[start]) * each
            self.card.copy(to + start * each, first, (end - start) * each)


class _Pinned:
    """One of a buffer's two sides in the computer's memory."""

    def __init__(self, memory: NDArray[np.uint8], parts: list[_Part], offsets: list[int]) -> None:
        self.memory = memory
        memory[:] = 0
        self.arrays = {
            part.name: np.ndarray(part.shape, part.dtype, memory, offset)
            for part, offset in zip(parts, offsets, strict=True)
        }

    def fill(self, batch: StepInput | None, size: StepSize) -> None:
        arrays = self.arrays
        tokens, rows = (0, 0) if batch is None else (len(batch.token_ids), len(batch.seq_lens))
        for name, missing in (("token_ids", 0), ("positions", 0), ("slot_mapping", -1)):
            arrays[name][tokens:] = missing
        arrays["seq_lens"][rows:] = 0
        if batch is not None:
            for name in ("token_ids", "positions", "slot_mapping"):
                arrays[name][:tokens] = getattr(batch, name)
            arrays["seq_lens"][:rows] = batch.seq_lens
            arrays["block_tables"][:rows, : batch.block_tables.shape[1]] = batch.block_tables
        if not size.is_decode:  # a decoding step's are always the same
            self._point_at(batch, rows)

    def _point_at(self, batch: StepInput | None, rows: int) -> None:
        """Which tokens belong to which sequence, and whose logits are wanted."""
        starts, wanted = self.arrays["query_starts"], self.arrays["logit_rows"]
        starts[:], wanted[:] = 0, 0
        if batch is not None:
            starts[: rows + 1] = batch.query_starts
            starts[rows + 1 :] = batch.query_starts[rows]
            wanted[: len(batch.logit_rows)] = batch.logit_rows
