"""A step's chunks as the flat arrays of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from qinfer.core.engine.scheduler import Chunk
from qinfer.core.engine.sequence import Sequence
from qinfer.core.types import StepInput


def step_input(chunks: Rows[Chunk], block_size: int) -> StepInput:
    """The model's input for these chunks; logits are wanted where a chunk ends its sequence."""
    tokens: list[int] = []
    for sequence, start, length, _ in chunks:
        tokens += sequence.tokens(start, start + length)
    sequences, *columns = zip(*chunks, strict=True)
    starts, lengths = (np.array(column, np.int64) for column in columns[:2])
    is_last = np.array(columns[2], np.bool_)
    first_rows = np.array([sequence.first_row for sequence in sequences], np.int64)
    ends = np.cumsum(lengths)
    blocks = [sequence.table() for sequence in sequences]
    tables = np.zeros((len(chunks), max(map(len, blocks))), np.int32)
    for row, held in zip(tables, blocks, strict=True):
        row[: len(held)] = held
    rows = np.repeat(np.arange(len(chunks)), lengths)  # of each token
    places = np.arange(len(tokens)) + (starts - ends + lengths)[rows]
    slots = tables[rows, places // block_size].astype(np.int64) * block_size + places % block_size
    return StepInput(
        token_ids=np.array(tokens, np.int64),
        positions=places + first_rows[rows],
        query_starts=np.concatenate(([0], ends)).astype(np.int32),
        seq_lens=(starts + lengths).astype(np.int32),
        slot_mapping=slots,
        block_tables=tables,
        logit_rows=ends[is_last] - 1,
    )


def following_input(
    before: StepInput, rows: NDArray[np.int64], sequences: Rows[Sequence], block_size: int
) -> StepInput:
    """As ``step_input`` of one more token of each of these sequences, which came to their last one
    in these rows of the step before: most of it is as it was.
    """
    count = len(rows)
    lengths = before.seq_lens[rows].astype(np.int64)
    tables = before.block_tables[rows]
    full = np.flatnonzero(lengths % block_size == 0)
    if len(full):
        columns = lengths[full] // block_size
        missing = int(columns.max()) + 1 - tables.shape[1]
        tables = np.pad(tables, ((0, 0), (0, max(missing, 0))))
        tables[full, columns] = [sequences[row].blocks[-1] for row in full.tolist()]
    columns = lengths // block_size
    slots = tables[np.arange(count), columns].astype(np.int64) * block_size + lengths % block_size
    return StepInput(
        token_ids=np.zeros(count, np.int64),
        positions=before.positions[before.query_starts[1:] - 1][rows] + 1,
        query_starts=np.arange(count + 1, dtype=np.int32),
        seq_lens=(lengths + 1).astype(np.int32),
        slot_mapping=slots,
        block_tables=tables,
        logit_rows=np.arange(count),
    )
