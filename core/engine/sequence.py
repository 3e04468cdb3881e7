"""One stream of tokens being generated."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qinfer.core.engine.edits import Edits, TokenEdits
from qinfer.core.engine.kv_cache import EMPTY
from qinfer.core.params import SamplingParams
from qinfer.core.types import RequestStats

NO_BLOCKS = np.zeros(0, np.int32)


@dataclass(eq=False)
class Sequence:
    """A prompt, its output so far, and where its keys and values are.

    A request with n > 1 is n sequences (``index`` 0 to n - 1), each with its own seed.
    ``num_computed`` counts tokens whose keys and values are in ``blocks``; ``hashed`` how many of
    those blocks are offered for sharing, the last of them holding the content ``content``.
    ``first_row`` is where the model's position tables begin for this sequence. ``blocks`` may grow;
    to change it otherwise, give it another list. ``awaiting`` is 1 while a step that chooses its
    next token is under way: that token counts, but is not known.
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
    awaiting: int = 0
    preemptions: int = 0
    added_at: float = 0.0
    started_at: float = 0.0
    first_token_at: float = 0.0
    _edits: TokenEdits | None = field(default=None, repr=False)
    _table: tuple[list[int], NDArray[np.int32]] = field(default=([], NO_BLOCKS), repr=False)

    def table(self) -> NDArray[np.int32]:
        """``blocks`` as an array, kept from step to step: it changes once in a block's tokens."""
        source, known = self._table
        if source is not self.blocks or len(known) != len(source):
            known = np.array(self.blocks, np.int32)
            self._table = (self.blocks, known)
        return known

    def edits(self) -> Edits:
        """Of the logits of its next token; ``params.edits`` says whether there may be any."""
        if self._edits is None:
            ends = (*self.params.stop_token_ids, *self.eos_token_ids)
            self._edits = TokenEdits(self.params, self.prompt, ends)
        return self._edits.after(self.output)

    @property
    def root(self) -> int:
        """Content id of its empty prefix: keys of other rows of the tables cannot be shared."""
        return EMPTY - self.first_row

    @property
    def last_token(self) -> int:
        """Its last token; 0 for one not known yet."""
        if self.awaiting:
            return 0
        return self.output[-1] if self.output else self.prompt[-1]

    @property
    def num_known(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.prompt) + len(self.output)

    @property
    def num_tokens(self) -> int:
        """The same with the one that is being chosen."""
        return len(self.prompt) + len(self.output) + self.awaiting

    @property
    def num_left(self) -> int:
        """Tokens to compute before the next one can be chosen, 0 if no more will be."""
        answered = len(self.output) + self.awaiting
        return 0 if answered >= self.max_tokens else len(self.prompt) + answered - self.num_computed

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens ``start`` to ``end`` of prompt and output together; 0 for one not known yet."""
        border = len(self.prompt)
        if start >= border:
            found = self.output[start - border : end - border]
        else:
            found = self.prompt[start:end] + self.output[: max(end - border, 0)]
        return found if len(found) == end - start else [*found, 0]

    def stats(self, finish_reason: str, now: float) -> RequestStats:
        """What became of it; ``now``, as the other times, on the clock of ``time.perf_counter``."""
        return RequestStats(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.num_cached,
            output_tokens=len(self.output),
            finish_reason=finish_reason,
            queue_seconds=self.started_at - self.added_at,
            first_token_seconds=self.first_token_at - self.added_at,
            total_seconds=now - self.added_at,
            preemptions=self.preemptions,
        )
