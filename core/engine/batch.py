"""A step's chunks as the flat arrays of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qinfer.core.engine.scheduler import Chunk
from qinfer.core.types import StepInput


def step_input(chunks: Sequence[Chunk], block_size: int) -> StepInput:
    """The model's input for these chunks; logits are wanted where a chunk ends its sequence."""
    lengths = np.array([chunk.length for chunk in chunks], np.int64)
    starts = np.array([chunk.start for chunk in chunks], np.int64)
    query_starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.concatenate([np.arange(c.start, c.start + c.length) for c in chunks])
    width = max(len(chunk.sequence.blocks) for chunk in chunks)
    tables = np.zeros((len(chunks), width), np.int64)
    for row, chunk in enumerate(chunks):
        tables[row, : len(chunk.sequence.blocks)] = chunk.sequence.blocks
    blocks = tables[np.repeat(np.arange(len(chunks)), lengths), positions // block_size]
    tokens = [
        token
        for chunk in chunks
        for token in chunk.sequence.tokens(chunk.start, chunk.start + chunk.length)
    ]
    last = [row for row, chunk in enumerate(chunks) if chunk.is_last]
    return StepInput(
        token_ids=np.array(tokens, np.int64),
        positions=positions.astype(np.int64),
        query_starts=query_starts.astype(np.int32),
        seq_lens=(starts + lengths).astype(np.int32),
        slot_mapping=blocks * block_size + positions % block_size,
        block_tables=tables.astype(np.int32),
        logit_rows=(query_starts[1:] - 1)[last].astype(np.int64),
    )
