"""Static scales of the KV cache, measured on what calibration leaves in a cache of floats.

Keys are there as attention reads them, after the rotary embedding, one row of each KV head, so a
scale belongs to a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qinfer.core.quantize.rounding import Floats, Grid
from qinfer.core.types import LayerCache

LEAST = 1e-30


def cache_scales(
    cache: Sequence[LayerCache], slots: NDArray[np.int64], dtype: str, by: str
) -> tuple[Floats, list[float]]:
    """Scales [num_layers, 2, num_kv_heads] of keys and values for a cache of ``dtype``, chosen by
    one of RANGES from the ``slots`` that are written; and each layer's relative error.
    """
    grid = Grid(dtype=dtype)
    scales, errors = [], []
    for layer in cache:
        own, wrong, whole = [], 0.0, 0.0
        for held in (layer.keys, layer.values):
            rows = held.numpy().reshape(-1, *held.shape[2:])[slots]
            by_head = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(rows.shape[1], -1)
            fit = grid.fit(by_head, by)
            own.append(np.maximum(fit.scale[:, 0], LEAST))
            wrong += float(((grid.rounded(by_head, fit) - by_head) ** 2).sum())
            whole += float((by_head**2).sum())
        scales.append(own)
        errors.append((wrong / max(whole, LEAST)) ** 0.5)
    return np.array(scales, np.float32), errors
