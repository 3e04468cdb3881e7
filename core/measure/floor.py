"""The least time that a decoding step can take, by the memory it moves; and each operator's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qinfer.core.errors import UsageError
from qinfer.core.model_card import step_bytes
from qinfer.core.types import CacheSpec, StepInput

if TYPE_CHECKING:
    from qinfer.core.llm import LLM


def step_floor(llm: LLM, size: int, context: int, step: float | None) -> dict[str, Any]:
    """How fast memory is read here now, how long that makes a step at least, and the share of a
    step's time that is.
    """
    bandwidth = getattr(llm.engine.runner, "read_bandwidth", None)
    if bandwidth is None:
        return {"read_bytes_per_s": None, "floor_seconds": None, "floor_share": None}
    loaded, speed = llm.loaded, bandwidth()
    read = step_bytes(loaded.config, loaded.linears, loaded.plan, llm.engine.cache, size, context)
    floor = read / speed
    return {
        "read_bytes_per_s": speed,
        "floor_seconds": floor,
        "floor_share": floor / step if step else None,
    }


def operator_records(
    runner: Any, cache: CacheSpec, sequences: int, context: int, bandwidth: float | None
) -> list[dict[str, Any]]:
    """One for each operator and shape, the longest altogether first; ``bandwidth`` in bytes a
    second. The caches' content is overwritten. Raises UsageError where the runner cannot tell.
    """
    times = getattr(runner, "operator_times", None)
    if times is None or not bandwidth:
        raise UsageError(
            "the operators of a step are timed on a GPU only",
            remedy="Use --device gpu, or leave --kernels out.",
        )
    return [
        {
            "operator": one.name,
            "shapes": one.shapes,
            "calls": one.calls,
            "seconds": one.seconds,
            "floor_seconds": one.nbytes / bandwidth,
            "floor_share": one.nbytes / bandwidth / one.seconds,
            "step_seconds": one.calls * one.seconds,
        }
        for one in times(decoding_step(cache, sequences, context))
    ]


def decoding_step(cache: CacheSpec, sequences: int, context: int) -> StepInput:
    """A token for each sequence, the last of ``context``, whose blocks lie one after the other."""
    size = cache.block_size
    each = -(-context // size)
    tables = np.arange(sequences * each, dtype=np.int32).reshape(sequences, each)
    at = np.full(sequences, context - 1, np.int64)
    return StepInput(
        token_ids=np.arange(sequences, dtype=np.int64),
        positions=at,
        query_starts=np.arange(sequences + 1, dtype=np.int32),
        seq_lens=(at + 1).astype(np.int32),
        slot_mapping=tables[:, -1].astype(np.int64) * size + at % size,
        block_tables=tables,
        logit_rows=np.arange(sequences, dtype=np.int64),
    )
