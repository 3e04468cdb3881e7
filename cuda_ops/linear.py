"""Matrix products ``x W + b``, one operator for each weight format.

A weight is [in, out] (Paddle's order, which its CPU product reads fastest).
"""

from __future__ import annotations

import paddle
from paddle import Tensor

from qinfer.cuda_ops.table import operator

E4M3_MAX = 448.0
"""Largest finite float8_e4m3fn (arXiv:2209.05433)."""


@operator
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X [T, in], weight [in, out] of x's dtype, bias [out] or None: [T, out]."""
    return _add(paddle.matmul(x, weight), bias)


@operator
def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Weight-only int8: ``(x W) * scale + b``; weight [in, out] int8, scale [out].

    The scale is per output channel, so it can follow the product.
    """
    return _add(paddle.matmul(x, weight.astype(x.dtype)) * scale, bias)


@operator
def linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """e4m3 weights and activations: weight [in, out] float8_e4m3fn, scale [out].

    Each token is scaled by its absolute maximum / 448 and rounded to e4m3 (nearest, ties to
    even) before the product, which adds up in float32: ``(x8 W8) * x_scale * scale + b``.
    """
    x_scale = (paddle.amax(paddle.abs(x), axis=-1, keepdim=True) / E4M3_MAX).clip(min=1e-30)
    # Paddle's cast makes 464 a NaN and does not saturate cleanly: clip first.
    rounded = (x / x_scale).clip(-E4M3_MAX, E4M3_MAX).astype("float8_e4m3fn").astype(x.dtype)
    product = paddle.matmul(rounded, _decode_e4m3(weight, x.dtype))
    return _add(product * (x_scale * E4M3_UNIT) * scale, bias)


E4M3_UNIT = 2.0**8
"""``_decode_e4m3`` returns values smaller by this factor."""


def _decode_e4m3(weight: Tensor, dtype: object) -> Tensor:
    """e4m3 -> ``dtype``, divided by 2^8: six times faster than Paddle's own cast on a CPU.

    s eeee mmm moved seven bits up reads as a float16 whose exponent bias is 15 instead of 7.
    Multiplying the sign-extended byte by 128 is that shift; the mask removes the sign's copy.
    A mask of the full shape, because Paddle's broadcasting "and" takes ten times as long.
    """
    shifted = weight.view("int8").astype("int16") * 128
    bits = paddle.bitwise_and(shifted, paddle.full_like(shifted, -16512))  # 0xBF80
    return bits.view("float16").astype(dtype)


def _add(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias
