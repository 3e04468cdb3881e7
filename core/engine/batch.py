"""A step's chunks as the flat arrays of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qinfer.core.engine.scheduler import Chunk
from qinfer.core.types import StepInput


def step_input(chunks: Sequence[Chunk], block_size: int) -> StepInput:
    """The model's input for these chunks; logits are wanted where a chunk ends its sequence."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    query_starts, logit_rows = [0], []
    tables = np.zeros((len(chunks), max(len(c.sequence.blocks) for c in chunks)), np.int32)
    for row, chunk in enumerate(chunks):
        blocks, end = chunk.sequence.blocks, chunk.start + chunk.length
        tables[row, : len(blocks)] = blocks
        tokens += chunk.sequence.tokens(chunk.start, end)
        for position in range(chunk.start, end):
            positions.append(chunk.sequence.first_row + position)
            slots.append(blocks[position // block_size] * block_size + position % block_size)
        query_starts.append(len(tokens))
        if chunk.is_last:
            logit_rows.append(len(tokens) - 1)
    return StepInput(
        token_ids=np.array(tokens, np.int64),
        positions=np.array(positions, np.int64),
        query_starts=np.array(query_starts, np.int32),
        seq_lens=np.array([chunk.start + chunk.length for chunk in chunks], np.int32),
        slot_mapping=np.array(slots, np.int64),
        block_tables=tables,
        logit_rows=np.array(logit_rows, np.int64),
    )
