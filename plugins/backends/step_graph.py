"""One size of step as a CUDA graph, with the inputs it reads and the answers it gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from paddle import Tensor

from qinfer.core.types import SamplingInput, StepInput
from qinfer.cuda_ops.graphs import Card, Graph
from qinfer.cuda_ops.ops import argmax, sample
from qinfer.plugins.backends.step_buffer import Continued, StepBuffer

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


def prompt_size(tokens: int, sequences: int, samples: bool = False) -> StepSize | None:
    """The size to fill such a step up to; None if it is too large to gain from a graph."""
    at, row = bisect_left(PROMPT_TOKENS, tokens), bisect_left(PROMPT_SEQUENCES, sequences)
    if at == len(PROMPT_TOKENS) or row == len(PROMPT_SEQUENCES):
        return None
    size = StepSize(PROMPT_TOKENS[at], PROMPT_SEQUENCES[row], samples)
    return None if size.tokens <= size.sequences else size


class StepGraph:
    """The graph of one size of step with its inputs and outputs, which keep their places.

    A sequence that is not there has length 0 and a token that is not there a negative slot: they
    read and write nothing.
    """

    def __init__(
        self, card: Card, model: Callable[[StepInput], Tensor], size: StepSize, max_blocks: int
    ) -> None:
        self.card, self.size = card, size
        self.inputs = StepBuffer(card, size.tokens, size.sequences, max_blocks)

        def compute() -> tuple[Tensor, Tensor]:
            logits = model(self.inputs.tensors)
            return logits, self._choose(logits)

        self.inputs.upload(None)
        compute()  # loads kernels and plans products, which a recording must not do
        card.wait()
        self.graph = Graph(card, compute)

    def begin(
        self, batch: StepInput, sampling: SamplingInput | None, before: Continued | None = None
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
