"""The next step of decoding, made ready while the device computes this one.

What it needs but for the tokens is known before they are: each sequence goes on by one place. If
a sequence then ends, its row is left out; if anything else changes, the scheduler makes the step.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qinfer.core.engine.sampler import has_edits, sampling_input
from qinfer.core.engine.scheduler import Chunk, Scheduler
from qinfer.core.types import SamplingInput, StepInput

Step = tuple[list[Chunk], StepInput, SamplingInput]
"""A step's chunks, and what the runner gets for them."""

Numbers = NDArray[np.int64]
Table = NDArray[np.int32]


class NextStep:
    """What follows a step in which every running sequence came to its last token."""

    def __init__(self, chunks: Rows[Chunk], batch: StepInput, scheduler: Scheduler) -> None:
        """``chunks`` and ``batch``: the step that is computed. Takes the blocks the next one needs,
        which their sequences keep in any case; ``can_follow`` has to hold.
        """
        size = scheduler.block_size
        self.sequences = [chunk.sequence for chunk in chunks]
        lengths = batch.seq_lens.astype(np.int64)
        rows = np.arange(len(chunks))
        tables = self._tables(lengths, batch.block_tables, scheduler)
        columns = np.minimum(lengths // size, tables.shape[1] - 1)  # of a row that ends: any
        first_rows = np.array([sequence.first_row for sequence in self.sequences], np.int64)
        self.fills_block = (lengths + 1) % size == 0
        may_edit = any(has_edits(sequence.params) for sequence in self.sequences)
        self.sampling = None if may_edit else sampling_input(self.sequences, ahead=1)
        self.batch = StepInput(
            token_ids=lengths,  # not known yet
            positions=lengths + first_rows,
            query_starts=np.arange(len(chunks) + 1, dtype=np.int32),
            seq_lens=batch.seq_lens + 1,
            slot_mapping=tables[rows, columns].astype(np.int64) * size + lengths % size,
            block_tables=tables,
            logit_rows=rows,
        )
        self.chunks = [
            Chunk(sequence, start, 1, True)
            for sequence, start in zip(self.sequences, lengths.tolist(), strict=True)
        ]

    def _tables(self, lengths: Numbers, tables: Table, scheduler: Scheduler) -> Table:
        """The block tables with a new block where a sequence that goes on has filled its last."""
        goes_on = np.array([len(s.output) + 1 < s.max_tokens for s in self.sequences])
        needing = np.flatnonzero((lengths % scheduler.block_size == 0) & goes_on)
        if not len(needing):
            return tables
        columns = lengths[needing] // scheduler.block_size
        wider = np.zeros((len(tables), max(int(columns.max()) + 1, tables.shape[1])), np.int32)
        wider[:, : tables.shape[1]] = tables
        for row, column in zip(needing.tolist(), columns.tolist(), strict=True):
            block = scheduler.pool.allocate()
            self.sequences[row].blocks.append(block)
            wider[row, column] = block
        return wider

    def take(self, scheduler: Scheduler) -> Step | None:
        """The step, if what runs now are sequences of the one before; None if not."""
        running = scheduler.running
        chunks, batch, fills, sampling = self.chunks, self.batch, self.fills_block, self.sampling
        if not running or (scheduler.waiting and len(running) < scheduler.max_num_seqs):
            return None
        if len(running) < len(chunks):
            alive = set(running)
            kept = np.array([sequence in alive for sequence in self.sequences])
            chunks = [chunk for chunk, keep in zip(chunks, kept, strict=True) if keep]
            batch, fills, sampling = _rows(batch, kept), fills[kept], None
        if [chunk.sequence for chunk in chunks] != running:
            return None
        for sequence in running:
            sequence.num_computed += 1
        for row in np.flatnonzero(fills).tolist():
            scheduler.offer_full_blocks(running[row])
        tokens = np.array([sequence.output[-1] for sequence in running], np.int64)
        return chunks, replace(batch, token_ids=tokens), sampling or sampling_input(running)


def can_follow(chunks: Rows[Chunk], scheduler: Scheduler) -> bool:
    """Whether the step after these chunks is one of decoding all of them, with blocks enough."""
    return (
        len(chunks) == len(scheduler.running)
        and scheduler.pool.num_free >= len(chunks)
        and len(chunks) <= scheduler.max_batch_tokens
        and all(chunk.is_last for chunk in chunks)
    )


def _rows(batch: StepInput, kept: NDArray[np.bool_]) -> StepInput:
    count = int(kept.sum())
    return StepInput(
        token_ids=batch.token_ids[kept],
        positions=batch.positions[kept],
        query_starts=np.arange(count + 1, dtype=np.int32),
        seq_lens=batch.seq_lens[kept],
        slot_mapping=batch.slot_mapping[kept],
        block_tables=batch.block_tables[kept],
        logit_rows=np.arange(count),
    )
