"""Static scales of the KV cache in quantised checkpoints: found, checked, and put together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.checkpoint.stored_arrays import AGAIN
from qinfer.core.errors import BadCheckpoint
from qinfer.core.types import ModelConfig

KINDS = ("k", "v")
LEAST = 1e-30
"""A scale of zero, of a head that calibration never saw a number of, would divide by it."""

Floats = NDArray[np.floating[Any]]


def named(names: Iterable[str], pattern: re.Pattern[str]) -> dict[tuple[int, str], str]:
    """(layer, "k" or "v") -> name, for the names in which ``pattern`` finds these two."""
    matches = ((name, pattern.search(name)) for name in names)
    return {(int(match[1]), match[2]): name for name, match in matches if match}


def stack(
    config: ModelConfig, found: Mapping[tuple[int, str], Floats], where: str
) -> NDArray[np.float32]:
    """[num_layers, 2, num_kv_heads] as ``CacheSpec`` has them, from what is ``found`` for each
    (layer, "k" or "v"): a scale, one for each KV head, or one for each query head.

    Raises BadCheckpoint naming a layer whose scales are missing, or are another number.
    """
    scales = np.empty((config.num_layers, len(KINDS), config.num_kv_heads), np.float32)
    for layer in range(config.num_layers):
        for number, kind in enumerate(KINDS):
            own = found.get((layer, kind))
            if own is None:
                raise BadCheckpoint(
                    f"{where} has no scale for the {_called(kind)} of layer {layer}.", remedy=AGAIN
                )
            scales[layer, number] = _by_head(config, own, f"{where}: {_called(kind)} of {layer}")
    return np.maximum(scales, LEAST)


def _by_head(config: ModelConfig, scales: Floats, what: str) -> Floats:
    """[num_kv_heads]. PaddleNLP measures after repeating each KV head for its query heads."""
    heads = config.num_kv_heads
    if scales.size in (1, heads):
        return scales
    if scales.size == config.num_heads:
        return scales[:: config.num_heads // heads]
    raise BadCheckpoint(
        f"{what} have {scales.size} scales where {heads} heads need as many.", remedy=AGAIN
    )


def _called(kind: str) -> str:
    return {"k": "keys", "v": "values"}[kind]
