"""Tables for rotary position embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotary_table(positions: int, head_dim: int, theta: float) -> NDArray[np.float32]:
    """Cos and signed sin for each position, computed in float64: [positions, 2 * head_dim].

    Row p is [cos | cos | -sin | sin] of p * theta^(-2i / head_dim), i < head_dim / 2
    (arXiv:2104.09864, in the half-rotation form Qwen2 uses).
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([cos, cos, -sin, sin], axis=1).astype(np.float32)
