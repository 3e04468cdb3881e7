"""Tables by position: rotary embedding with its scalings, and log-n attention.

Dynamic NTK makes the base a function of the text's length. Rotating again at every step, as
transformers does, would leave the keys already cached with another base. So a sequence keeps the
base of its prompt's length, rounded up to ``original`` times a power of two, which is what Qwen's
own modeling_qwen.py does. There are few such bases, and the table holds the rows of each, one
variant after the other: ``first_row`` says where a sequence's begin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qinfer.core.types import ModelConfig, RotaryScaling

Floats = NDArray[np.float64]


def rotary_table(
    positions: int, head_dim: int, theta: float, scaling: RotaryScaling | None = None
) -> NDArray[np.float32]:
    """Cos and signed sin for each position, computed in float64: [variants * P, 2 * head_dim].

    Row p is [cos | cos | -sin | sin] of p * f_i, i < head_dim / 2, where f_i is
    theta^(-2i / head_dim) unless scaled (arXiv:2104.09864, in the half-rotation form Qwen2 uses).
    """
    variants = _variants(positions, scaling)
    tables = [_table(positions, head_dim, theta, scaling, v) for v in range(variants)]
    return tables[0] if len(tables) == 1 else np.concatenate(tables)


def first_row(config: ModelConfig, prompt_tokens: int) -> int:
    """The row of position 0 in the position tables, for a sequence with that many prompt tokens."""
    scaling = config.rotary_scaling
    if scaling is None or scaling.kind != "dynamic":
        return 0
    return _variant(prompt_tokens, scaling.original) * config.max_position_embeddings


def log_scales(config: ModelConfig) -> NDArray[np.float32] | None:
    """Log-n attention's factors of the queries, a row for each of the rotary table's; or None.

    log(n) to the base ``log_length`` for the n-th token, 1 up to that length
    (modeling_qwen.py; kexue.fm/archives/8823).
    """
    if not config.log_length:
        return None
    count = np.arange(1, config.max_position_embeddings + 1, dtype=np.float64)
    factors = np.maximum(np.log(count) / math.log(config.log_length), 1).astype(np.float32)
    return np.tile(factors, _variants(len(count), config.rotary_scaling))


def _variants(positions: int, scaling: RotaryScaling | None) -> int:
    if scaling is None or scaling.kind != "dynamic":
        return 1
    return _variant(positions, scaling.original) + 1


def _variant(tokens: int, original: int) -> int:
    """The least k with tokens <= original * 2^k."""
    return max((tokens - 1) // original, 0).bit_length()


def _table(
    positions: int, head_dim: int, theta: float, scaling: RotaryScaling | None, variant: int
) -> NDArray[np.float32]:
    frequencies = _frequencies(head_dim, theta, scaling, variant)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    if scaling is not None:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    return np.concatenate([cos, cos, -sin, sin], axis=1).astype(np.float32)


def _frequencies(
    head_dim: int, theta: float, scaling: RotaryScaling | None, variant: int
) -> Floats:
    if scaling is not None and scaling.kind == "dynamic":
        # transformers' formula at the length original * 2^variant; with factor 2, Qwen's.
        stretch = scaling.factor * 2**variant - (scaling.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    plain: Floats = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    return _yarn(plain, head_dim, theta, scaling)


def _yarn(plain: Floats, head_dim: int, theta: float, scaling: RotaryScaling) -> Floats:
    """Fast dimensions as they are, slow ones interpolated, a ramp between (arXiv:2309.00071)."""

    def dimension(turns: float) -> float:
        """Which dimension turns that often within the trained length."""
        return head_dim * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float64) - low) / (high - low), 0, 1)
    return plain * (1 - ramp) + plain / scaling.factor * ramp
