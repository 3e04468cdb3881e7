"""Matrix products ``x W + b``, one operator for each weight format.

A weight comes as [out, in] and is put once into the order a version's products read fastest
(``arrange``); only that copy is kept. What follows speaks of W [in, out].
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from qinfer.core.errors import Unsupported
from qinfer.cuda_ops.table import operator

E4M3_MAX = 448.0
"""Largest finite float8_e4m3fn (arXiv:2209.05433)."""

INT4_GROUP = 64
"""Groups of inputs that share a scale in ``linear_int4`` have so many, or a multiple."""

ROWS = 1024
"""Rows arranged at a time, to bound the memory it takes."""


@operator
def arrange(weight: Tensor, dtype: str) -> Tensor:
    """A weight [out, in] (float32, float16, bfloat16, int8, float8_e4m3fn) in this version's order.

    Reference: [in, out], which Paddle's CPU product reads fastest; floats become ``dtype``, the
    compute dtype.
    """
    held = dtype if weight.dtype in FLOATS else weight.dtype
    is_e4m3 = weight.dtype == paddle.float8_e4m3fn
    source = weight.view("int8") if is_e4m3 else weight
    result = paddle.empty([weight.shape[1], weight.shape[0]], "int8" if is_e4m3 else held)
    for start in range(0, weight.shape[0], ROWS):
        result[:, start : start + ROWS] = source[start : start + ROWS].T.astype(result.dtype)
    return result.view("float8_e4m3fn") if is_e4m3 else result


FLOATS = (paddle.float32, paddle.float16, paddle.bfloat16)


@operator
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: str, out: int) -> Tensor:
    """X [T, in], an arranged float weight, bias [out] or None: [T, out] in x's dtype.

    ``dtype``: the weight's before it was arranged. ``out``: its outputs.
    """
    return _add(paddle.matmul(x, weight), bias)


@operator
def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Weight-only int8: ``(x W) * scale + b``; an arranged int8 weight, scale [out].

    The scale is per output channel, so it can follow the product.
    """
    return _add(paddle.matmul(x, weight.astype(x.dtype)) * scale, bias)


@operator
def arrange_int4(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """An int4 weight [out, in] (int8 values -8 to 7) and its scale [out, groups], arranged; a group
    has 64 inputs or a multiple.

    Reference: the weight unpacked as int8 [in, out], the scale [groups, out].
    """
    return weight.T.contiguous(), scale.T.contiguous()


@operator
def linear_int4(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: int) -> Tensor:
    """Weight-only int4 in groups of inputs: ``x (W * scale) + b``; both arranged."""
    groups = weight.astype(x.dtype).reshape([scale.shape[0], -1, out])
    return _add(paddle.matmul(x, (groups * scale.unsqueeze(1)).reshape([-1, out])), bias)


@operator
def linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """e4m3 weights and activations: an arranged float8_e4m3fn weight, scale [out].

    Each token is scaled by its absolute maximum / 448 and rounded to e4m3 (nearest, ties to
    even) before the product, which adds up in float32: ``(x8 W8) * x_scale * scale + b``.
    """
    x_scale = (paddle.amax(paddle.abs(x), axis=-1, keepdim=True) / E4M3_MAX).clip(min=1e-30)
    product = paddle.matmul(round_e4m3(x / x_scale), decode_e4m3(weight, x.dtype))
    return _add(product * (x_scale * E4M3_UNIT) * scale, bias)


E4M3_UNIT = 2.0**8
"""``decode_e4m3`` returns values smaller by this factor."""


def decode_e4m3(weight: Tensor, dtype: object) -> Tensor:
    """e4m3 -> ``dtype``, divided by 2^8: six times faster than Paddle's own cast on a CPU.

    s eeee mmm moved seven bits up reads as a float16 whose exponent bias is 15 instead of 7.
    Multiplying the sign-extended byte by 128 is that shift; the mask removes the sign's copy.
    A mask of the full shape, because Paddle's broadcasting "and" takes ten times as long.
    """
    codes = e4m3_codes(weight)
    if not paddle.in_dynamic_mode():  # a program cannot take bits for another type's
        table = paddle.to_tensor(_every_e4m3() / np.float32(E4M3_UNIT))
        numbers = paddle.gather(table, codes.astype("int32").flatten() % 256)
        return numbers.reshape(codes.shape).astype(dtype)
    shifted = codes.astype("int16") * 128
    bits = paddle.bitwise_and(shifted, paddle.full_like(shifted, -16512))  # 0xBF80
    return bits.view("float16").astype(dtype)


def round_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 numbers, ties to even, saturating at 448; in x's dtype."""
    # Paddle's cast makes 464 a NaN and does not saturate cleanly: clip first.
    x = x.clip(-E4M3_MAX, E4M3_MAX)
    if paddle.in_dynamic_mode():
        return x.astype("float8_e4m3fn").astype(x.dtype)
    # Programs cannot be saved with that type: the codes are found between the numbers' middles.
    numbers = _every_e4m3()[:127]
    middles = paddle.to_tensor((numbers[1:] + numbers[:-1]) / 2)
    low, high = (paddle.searchsorted(middles, paddle.abs(x), right=end) for end in (False, True))
    codes = paddle.where(low % 2 == 0, low, high)  # they differ for a middle alone
    rounded = paddle.gather(paddle.to_tensor(numbers), codes.flatten()).reshape(x.shape)
    return paddle.where(x < 0, -rounded, rounded)


def _every_e4m3() -> NDArray[np.float32]:
    """The numbers of all 256 codes; 0 for NaN, which a saved program cannot hold."""
    codes = np.arange(256, dtype=np.uint8)
    numbers: NDArray[np.float32] = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return np.nan_to_num(numbers, nan=0.0)


def e4m3_codes(numbers: Tensor) -> Tensor:
    """The bits of float8_e4m3fn numbers as int8, which is all that most operators of Paddle can
    move about; int8 ones are codes already.
    """
    if numbers.dtype == paddle.int8:
        return numbers
    if not paddle.in_dynamic_mode():
        raise Unsupported(
            "the reference operators cannot be exported with keys and values in fp8, as Paddle's "
            "programs cannot take such numbers for bits",
            remedy="Use --kv-cache-dtype int8 or auto, or the native operators (qinfer doctor).",
        )
    return numbers.view("int8")


def _add(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes held by tensors, ``None`` ones left out."""
    return sum(int(t.size) * t.element_size() for t in tensors if t is not None)
