"""A step's chunks as the flat arrays of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qinfer.core.engine.scheduler import Chunk
from qinfer.core.types import StepInput


def step_input(chunks: Sequence[Chunk], block_size: int) -> StepInput:
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
