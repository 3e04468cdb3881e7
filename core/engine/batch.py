"""A step's chunks as the flat arrays of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.engine.scheduler import Chunk
from qinfer.core.engine.sequence import Sequence
from qinfer.core.types import StepInput


def step_input(chunks: Rows[Chunk], block_size: int) -> StepInput:
    """The model's input for these chunks; logits are wanted where a chunk ends its sequence."""
    if all(chunk.length == 1 and chunk.is_last for chunk in chunks):
        return _decode_input(chunks, block_size)
    tokens: list[int] = []
    for sequence, start, length, _ in chunks:
        tokens += sequence.tokens(start, start + length)
    sequences, *columns = zip(*chunks, strict=True)
    starts, lengths = (np.array(column, np.int64) for column in columns[:2])
    is_last = np.array(columns[2], np.bool_)
    first_rows = np.array([sequence.first_row for sequence in sequences], np.int64)
    ends = np.cumsum(lengths)
    tables = _block_tables(sequences)
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


def _decode_input(chunks: Rows[Chunk], block_size: int) -> StepInput:
    """The same where each chunk is its sequence's last token. The weights of the step before have
    driven numpy's code out of the caches, so numbers are put into lists, which needs little of it.
    """
    tokens, positions, lengths, slots = [], [], [], []
    for sequence, start, _, _ in chunks:
        tokens.append(sequence.last_token)
        positions.append(start + sequence.first_row)
        lengths.append(start + 1)
        slots.append(sequence.blocks[start // block_size] * block_size + start % block_size)
    count = len(chunks)
    return StepInput(
        token_ids=np.array(tokens, np.int64),
        positions=np.array(positions, np.int64),
        query_starts=_counting(count + 1, np.int32),
        seq_lens=np.array(lengths, np.int32),
        slot_mapping=np.array(slots, np.int64),
        block_tables=_block_tables([chunk.sequence for chunk in chunks]),
        logit_rows=_counting(count, np.int64),
    )


@lru_cache
def _counting(count: int, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """0 to ``count`` - 1, to be read only."""
    numbers = np.arange(count, dtype=dtype)
    numbers.flags.writeable = False
    return numbers


def _block_tables(sequences: Rows[Sequence]) -> NDArray[np.int32]:
    """[S, W]: the blocks of each sequence and zeros behind them."""
    held = [sequence.table() for sequence in sequences]
    if len(held) == 1:
        return held[0][None]
    tables = np.zeros((len(held), max(map(len, held))), np.int32)
    for row, blocks in zip(tables, held, strict=True):
        row[: len(blocks)] = blocks
    return tables


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
        query_starts=_counting(count + 1, np.int32),
        seq_lens=(lengths + 1).astype(np.int32),
        slot_mapping=slots,
        block_tables=tables,
        logit_rows=_counting(count, np.int64),
    )
