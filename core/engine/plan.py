"""Steps: what the scheduler chose as the runner gets it, and steps that are under way.

A device that computes by itself has the next step queued before this one's tokens are known: they
are on the device by the time they are needed. A sequence that turns out to have ended is computed
once more for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qinfer.core.engine.batch import following_input, step_input
from qinfer.core.engine.sampler import sampling_input
from qinfer.core.engine.scheduler import Chunk
from qinfer.core.engine.sequence import Sequence
from qinfer.core.protocols import OverlappingRunner
from qinfer.core.types import SamplingInput, StepInput, StepOutput


class StepInFlight(NamedTuple):
    """A step that has been begun; ``finish`` waits for its tokens. Where they are chosen by those
    of the step before, ``choose`` is to be called when these are known and gives ``finish``.
    """

    chunks: list[Chunk]
    batch: StepInput
    finish: Callable[[], StepOutput] | None
    choose: Callable[[SamplingInput], Callable[[], StepOutput]] | None = None

    def wait(self) -> StepOutput:
        """Its tokens."""
        assert self.finish is not None, "chosen() comes first"
        return self.finish()

    def chosen(self) -> StepInFlight:
        """The tokens of the step before are known."""
        if self.choose is None:
            return self
        return self._replace(finish=self.choose(sampling_input(ending(self.chunks))), choose=None)


@dataclass(frozen=True)
class Plan:
    """A step to begin. ``rows`` [T]: which row of the step before chooses a token, -1 for tokens
    that are known; None where all are.
    """

    chunks: list[Chunk]
    batch: StepInput
    rows: NDArray[np.int64] | None = None

    def begin_ahead(self, runner: OverlappingRunner) -> StepInFlight | None:
        """Begin it behind the step before; None where the runner cannot."""
        sequences = ending(self.chunks)
        if any(sequence.params.edits for sequence in sequences):
            choose = runner.compute(self.batch, self.rows)
            return choose and StepInFlight(self.chunks, self.batch, None, choose)
        finish = runner.begin(self.batch, sampling_input(sequences), self.rows)
        return finish and StepInFlight(self.chunks, self.batch, finish)

    def with_tokens(self, chosen: NDArray[np.int64]) -> Plan:
        """The same with the tokens that the step before has chosen."""
        if self.rows is None:
            return self
        tokens, unknown = self.batch.token_ids.copy(), self.rows >= 0
        tokens[unknown] = chosen[self.rows[unknown]]
        return Plan(self.chunks, replace(self.batch, token_ids=tokens))


def ending(chunks: Rows[Chunk]) -> list[Sequence]:
    """The sequences whose last token is among these chunks."""
    return [chunk.sequence for chunk in chunks if chunk.is_last]


def plan(chunks: list[Chunk], block_size: int, before: StepInFlight | None = None) -> Plan:
    """The step of these chunks, to begin behind ``before`` or, without that, by itself."""
    if before is None:
        return Plan(chunks, step_input(chunks, block_size))
    sequences = ending(before.chunks)
    row_of = dict(zip(sequences, range(len(sequences)), strict=True))
    if len(sequences) == len(before.chunks) and all(chunk.length == 1 for chunk in chunks):
        following = [chunk.sequence for chunk in chunks]
        found = [row_of.get(sequence, -1) for sequence in following]
        if min(found) >= 0:
            rows = np.array(found, np.int64)
            batch = following_input(before.batch, rows, following, block_size)
            return Plan(chunks, batch, rows)
    batch = step_input(chunks, block_size)
    rows = np.full(len(batch.token_ids), -1, np.int64)
    lasts = batch.query_starts[1:] - 1
    for at, (sequence, _, _, is_last) in zip(lasts.tolist(), chunks, strict=True):
        if is_last and sequence.awaiting:
            rows[at] = row_of[sequence]
    return Plan(chunks, batch, rows)
