"""The next step of decoding, begun while the device still computes the one before.

What it needs is known by then but for the tokens, and those are on the device already: each
sequence goes on by one place. One that turns out to have ended is computed once more for nothing.
Where more than that may change, the scheduler makes the step when the one before is over.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qinfer.core.engine.sampler import sampling_input
from qinfer.core.engine.scheduler import Chunk, Scheduler
from qinfer.core.protocols import OverlappingRunner
from qinfer.core.types import SamplingInput, StepInput, StepOutput

Numbers = NDArray[np.int64]
Table = NDArray[np.int32]


class Step(NamedTuple):
    """A step's chunks, and what the runner gets for them."""

    chunks: list[Chunk]
    batch: StepInput
    sampling: SamplingInput


class StepInFlight(NamedTuple):
    """A step that has been begun; ``finish`` waits for its tokens."""

    chunks: list[Chunk]
    batch: StepInput
    finish: Callable[[], StepOutput]


class NextStep:
    """What follows a step in which every running sequence came to its last token."""

    def __init__(self, before: StepInFlight, rows: Rows[int], scheduler: Scheduler) -> None:
        """``rows``: those of the step before whose sequences go on. Takes the blocks they need,
        which they keep in any case.
        """
        self.scheduler = scheduler
        self.rows = np.array(rows, np.int64)
        self.sequences = [before.chunks[row].sequence for row in rows]
        size, count = scheduler.block_size, len(self.sequences)
        lengths = before.batch.seq_lens[self.rows].astype(np.int64)
        tables = self._tables(lengths, before.batch.block_tables[self.rows])
        first_rows = np.array([sequence.first_row for sequence in self.sequences], np.int64)
        slots = tables[np.arange(count), lengths // size].astype(np.int64) * size + lengths % size
        may_edit = any(sequence.params.edits for sequence in self.sequences)
        self.sampling = None if may_edit else sampling_input(self.sequences, ahead=1)
        self.fills_block = (lengths + 1) % size == 0
        self.batch = StepInput(
            token_ids=lengths,  # not known yet
            positions=lengths + first_rows,
            query_starts=np.arange(count + 1, dtype=np.int32),
            seq_lens=(lengths + 1).astype(np.int32),
            slot_mapping=slots,
            block_tables=tables,
            logit_rows=np.arange(count),
        )
        self.chunks = [
            Chunk(sequence, start, 1, True)
            for sequence, start in zip(self.sequences, lengths.tolist(), strict=True)
        ]

    def _tables(self, lengths: Numbers, tables: Table) -> Table:
        """The block tables with a new block where a sequence has filled its last."""
        needing = np.flatnonzero(lengths % self.scheduler.block_size == 0)
        if not len(needing):
            return tables
        columns = lengths[needing] // self.scheduler.block_size
        wider = np.zeros((len(tables), max(int(columns.max()) + 1, tables.shape[1])), np.int32)
        wider[:, : tables.shape[1]] = tables
        for row, column in zip(needing.tolist(), columns.tolist(), strict=True):
            block = self.scheduler.pool.allocate()
            self.sequences[row].blocks.append(block)
            wider[row, column] = block
        return wider

    def begin(self, runner: OverlappingRunner) -> StepInFlight | None:
        """Begin it before the tokens are known; None where it needs them."""
        if self.sampling is None:
            return None
        finish = runner.begin(self.batch, self.sampling, self.rows)
        return None if finish is None else StepInFlight(self.chunks, self.batch, finish)

    def settle(self) -> bool:
        """The step before is over: count what this one, which was begun, computes. Whether any of
        its sequences goes on.
        """
        running = set(self.scheduler.running)
        alive = [row for row, sequence in enumerate(self.sequences) if sequence in running]
        self._count(alive)
        return bool(alive)

    def take(self) -> Step | None:
        """The step, which was not begun, with the tokens, which are known now; None if not all that
        runs are sequences of it.
        """
        scheduler, running = self.scheduler, self.scheduler.running
        if not running or (scheduler.waiting and len(running) < scheduler.max_num_seqs):
            return None
        alive = set(running)
        kept = [row for row, sequence in enumerate(self.sequences) if sequence in alive]
        chunks, batch, sampling = self.chunks, self.batch, self.sampling
        if len(kept) < len(chunks):
            chunks, batch, sampling = [chunks[row] for row in kept], _rows(batch, kept), None
        if [chunk.sequence for chunk in chunks] != running:
            return None
        self._count(kept)
        tokens = np.array([sequence.output[-1] for sequence in running], np.int64)
        return Step(chunks, replace(batch, token_ids=tokens), sampling or sampling_input(running))

    def _count(self, rows: Rows[int]) -> None:
        for row in rows:
            self.sequences[row].num_computed += 1
            if self.fills_block[row]:
                self.scheduler.offer_full_blocks(self.sequences[row])


def follow(before: StepInFlight, scheduler: Scheduler) -> NextStep | None:
    """The step after this one, if that will be one of decoding what runs of it, with blocks enough;
    None if not, or if nothing goes on.
    """
    running, chunks = scheduler.running, before.chunks
    if (
        (scheduler.waiting and len(running) < scheduler.max_num_seqs)
        or scheduler.pool.num_free < len(running)
        or len(running) > scheduler.max_batch_tokens
        or not all(chunk.is_last for chunk in chunks)
    ):
        return None
    runs = set(running)
    alive = [row for row, chunk in enumerate(chunks) if chunk.sequence in runs]
    if [chunks[row].sequence for row in alive] != running:
        return None
    rows = [row for row, s in zip(alive, running, strict=True) if len(s.output) + 1 < s.max_tokens]
    return NextStep(before, rows, scheduler) if rows else None


def _rows(batch: StepInput, kept: Rows[int]) -> StepInput:
    count = len(kept)
    return StepInput(
        token_ids=batch.token_ids[kept],
        positions=batch.positions[kept],
        query_starts=np.arange(count + 1, dtype=np.int32),
        seq_lens=batch.seq_lens[kept],
        slot_mapping=batch.slot_mapping[kept],
        block_tables=batch.block_tables[kept],
        logit_rows=np.arange(count),
    )
