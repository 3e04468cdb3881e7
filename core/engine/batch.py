"""A step's chunks as the flat arrays of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qinfer.core.engine.scheduler import Chunk
from qinfer.core.types import StepInput


def step_input(chunks: Sequence[Chunk], block_size: int) -> StepInput:
    """The model's input for these chunks; logits are wanted where a chunk ends its sequence."""
    tokens: list[int] = []
    for chunk in chunks:
        tokens += chunk.sequence.tokens(chunk.start, chunk.start + chunk.length)
    starts = np.array([chunk.start for chunk in chunks], np.int64)
    lengths = np.array([chunk.length for chunk in chunks], np.int64)
    first_rows = np.array([chunk.sequence.first_row for chunk in chunks], np.int64)
    is_last = np.array([chunk.is_last for chunk in chunks], np.bool_)
    ends = np.cumsum(lengths)
    tables = np.zeros((len(chunks), max(len(c.sequence.blocks) for c in chunks)), np.int32)
    for row, chunk in enumerate(chunks):
        blocks = chunk.sequence.table()
        tables[row, : len(blocks)] = blocks
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
