"""What goes into a step and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from qinfer.core.types.arrays import Array


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """One step's ragged batch: T new tokens of S sequences, R of whose logits are wanted.

    token_ids [T], positions [T]: int64; a position is a row of the model's position tables
    (the token's place in its sequence, unless ``core.rotary.first_row`` says otherwise).
    query_starts [S + 1], seq_lens [S] (cached and new tokens): int32. slot_mapping [T] int64:
    block * block_size + offset where each new key and value goes. block_tables [S, W] int32, W
    at least the most blocks any sequence has; entries past a sequence's end are not read.
    logit_rows [R] int64: indices into the T tokens, all of them in order where R is T.
    """

    token_ids: Array
    positions: Array
    query_starts: Array
    seq_lens: Array
    slot_mapping: Array
    block_tables: Array
    logit_rows: Array


@dataclass(frozen=True, kw_only=True)
class SamplingInput:
    """How to choose one token for each of R logit rows (all 1-D, float32 or int64).

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off; ``uniform`` is
    the row's random number in [0, 1). The edits are (row, token) pairs, each pair once: a positive
    logit is divided and a negative one multiplied by ``edit_scale``, then ``edit_bias`` is added.
    ``num_logprobs`` is -1 for none, 0 for the chosen token's, k for the k best as well.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    uniform: Array
    edit_rows: Array
    edit_tokens: Array
    edit_scale: Array
    edit_bias: Array
    num_logprobs: int = -1

    @cached_property
    def is_plain(self) -> bool:
        """Whether each row takes its likeliest token and nothing else is asked for."""
        return self.num_logprobs < 0 and not self.edit_rows.size and not self.temperature.any()


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The chosen tokens [R] int64 and, where asked for, log-probabilities of the unedited
    distribution: of the chosen token [R], of the best tokens [R, k] with their ids [R, k].
    """

    token_ids: Array
    logprobs: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None
