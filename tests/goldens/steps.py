"""Drive an opened model step by step and keep the logits of every position.

The engine itself only asks for the logits it samples from; this asks for all, over a small paged
cache of its own whose blocks lie in no particular order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK_SIZE = 16
STALE = 1e3


class Stepper:
    """Sequences of one model side by side; each ``step`` brings any number of tokens of each."""

    def __init__(
        self, model: Any, config: Any, sequences: int, longest: int, prompt_tokens: int = 0
    ) -> None:
        """``prompt_tokens``: of each sequence; some models rotate long prompts differently."""
        from qinfer.core.hardware.place import place
        from qinfer.core.rotary import first_row
        from qinfer.core.types import LayerCache

        self.model = model
        self.first_row = first_row(config, prompt_tokens)
        blocks = -(-longest // BLOCK_SIZE)
        order = np.random.Generator(np.random.PCG64(0)).permutation(sequences * blocks)
        self.tables = order.reshape(sequences, blocks).astype(np.int32)
        self.lengths = np.zeros(sequences, np.int32)
        shape = [sequences * blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim]
        # Slots not yet written hold what an earlier owner left: unmasked, it would show.
        stale = np.full(shape, STALE, np.float32)
        full = lambda: place(stale.copy(), config.compute_dtype)  # noqa: E731
        self.cache = [LayerCache(keys=full(), values=full()) for _ in range(config.num_layers)]

    def step(self, new: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Append ``new[i]`` to sequence i; logits [len(new[i]), vocab] for each."""
        import paddle

        from qinfer.core.types import StepInput

        active = [i for i, tokens in enumerate(new) if len(tokens)]
        counts = [len(new[i]) for i in active]
        starts = [np.arange(n) + self.lengths[i] for i, n in zip(active, counts, strict=True)]
        slots = [
            self.tables[i][at // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + at % BLOCK_SIZE
            for i, at in zip(active, starts, strict=True)
        ]
        self.lengths[active] += np.array(counts, np.int32)
        arrays = {
            "token_ids": np.concatenate([np.asarray(new[i], np.int64) for i in active]),
            "positions": self.first_row + np.concatenate(starts).astype(np.int64),
            "query_starts": np.cumsum([0, *counts]).astype(np.int32),
            "seq_lens": self.lengths[active],
            "slot_mapping": np.concatenate(slots),
            "block_tables": self.tables[active],
            "logit_rows": np.arange(sum(counts), dtype=np.int64),
        }
        with paddle.no_grad():
            batch = StepInput(**{name: paddle.to_tensor(a) for name, a in arrays.items()})
            logits = self.model(batch, self.cache).numpy()
        parts = iter(np.split(logits, np.cumsum(counts)[:-1]))
        return [next(parts) if i in active else logits[:0] for i in range(len(new))]


def step_logits(
    opened: Any, tokens: Sequence[int], chunks: Sequence[int], prompt_tokens: int = 0
) -> np.ndarray:
    """Logits [T, vocab] of one sequence fed in pieces of the given sizes, which add up to T."""
    if sum(chunks) != len(tokens):
        raise ValueError(f"chunks of {sum(chunks)} tokens for {len(tokens)}")
    stepper = Stepper(opened.model, opened.config, 1, len(tokens), prompt_tokens)
    ends = np.cumsum(chunks)
    pieces = [tokens[end - size : end] for end, size in zip(ends, chunks, strict=True)]
    return np.concatenate([stepper.step([piece])[0] for piece in pieces])
