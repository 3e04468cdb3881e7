"""One stream of tokens being generated."""

from __future__ import annotations

from dataclasses import dataclass, field

from qinfer.core.engine.kv_cache import EMPTY
from qinfer.core.params import SamplingParams


@dataclass(eq=False)
class Sequence:
    """A prompt, its output so far, and where its keys and values are.

    A request with n > 1 is n sequences (``index`` 0 to n - 1), each with its own seed.
    ``num_computed`` counts tokens whose keys and values are in ``blocks``; ``hashed`` how many of
    those blocks are offered for sharing, the last of them holding the content ``content``.
    ``first_row`` is where the model's position tables begin for this sequence.
    """

    request_id: int
    index: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    eos_token_ids: frozenset[int]
    first_row: int = 0
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    hashed: int = 0
    content: int = EMPTY
    preemptions: int = 0
    added_at: float = 0.0
    started_at: float = 0.0
    first_token_at: float = 0.0

    @property
    def root(self) -> int:
        """Content id of its empty prefix: keys of other rows of the tables cannot be shared."""
        return EMPTY - self.first_row

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.prompt) + len(self.output)

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens ``start`` to ``end`` of prompt and output together."""
        border = len(self.prompt)
        return self.prompt[start:end] + self.output[max(start - border, 0) : max(end - border, 0)]
