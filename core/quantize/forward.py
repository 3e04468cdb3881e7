"""Putting the calibration data through a model once, over a cache of floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qinfer.core.hardware.place import place
from qinfer.core.protocols import Model
from qinfer.core.types import Array, LayerCache, ModelConfig, StepInput

BLOCK_SIZE = 16

PLAIN_BLOCK_SIZE = 8
"""Of a cache that is read afterwards: the native operators order larger blocks in their own way."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What the model left: each layer's keys and values if they were kept, the slots that hold
    some, and the logits [sequences, vocab_size] after each sequence's last token.
    """

    cache: Sequence[LayerCache]
    slots: NDArray[np.int64]
    logits: Array


def run_calibration(
    model: Model,
    config: ModelConfig,
    pieces: Sequence[Sequence[int]],
    *,
    keep_cache: bool = False,
) -> Pass:
    """Put all sequences through the model together; unless ``keep_cache``, all layers have one and
    the same cache, each done with it when the next begins.
    """
    import paddle

    size = PLAIN_BLOCK_SIZE if keep_cache else BLOCK_SIZE
    counts = [len(piece) for piece in pieces]
    blocks = [-(-count // size) for count in counts]
    starts = np.cumsum([0, *blocks[:-1]])
    tables = np.zeros((len(pieces), max(blocks)), np.int32)
    for row, (start, count) in enumerate(zip(starts, blocks, strict=True)):
        tables[row, :count] = np.arange(start, start + count)
    positions = [np.arange(count) for count in counts]
    slots = np.concatenate(
        [start * size + at for start, at in zip(starts, positions, strict=True)]
    ).astype(np.int64)
    batch = StepInput(
        token_ids=place(np.concatenate([np.asarray(piece, np.int64) for piece in pieces])),
        positions=place(np.concatenate(positions).astype(np.int64)),
        query_starts=place(np.cumsum([0, *counts]).astype(np.int32)),
        seq_lens=place(np.array(counts, np.int32)),
        slot_mapping=place(slots),
        block_tables=place(tables),
        logit_rows=place(np.cumsum(counts).astype(np.int64) - 1),
    )
    shape = [sum(blocks), size, config.num_kv_heads, config.head_dim]
    held = config.num_layers if keep_cache else 1
    cache = [
        LayerCache(keys=paddle.empty(shape), values=paddle.empty(shape)) for _ in range(held)
    ] * (config.num_layers // held)
    with paddle.no_grad():
        logits = model(batch, cache)
    return Pass(cache=cache if keep_cache else (), slots=slots, logits=logits)
