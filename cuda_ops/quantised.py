"""Matrix products of quantised activations, and of grouped weights with any group.

As in ``linear.py`` a weight comes as [out, in] and is arranged once, each kind by the operator made
for its product. What follows speaks of W [in, out].
"""

from __future__ import annotations

import paddle
from paddle import Tensor

from qinfer.cuda_ops.experts import _each, _stack
from qinfer.cuda_ops.linear import E4M3_MAX, E4M3_UNIT, _add, decode_e4m3, round_e4m3
from qinfer.cuda_ops.table import REFERENCE, operator

INT8_MIN, INT8_MAX = -128.0, 127.0

EXACT = 1024
"""Products of int8 numbers whose sum float32 holds exactly: 1024 * 128 * 128 = 2^24."""


@operator
def arrange_a8w8(weight: Tensor) -> Tensor:
    """An int8 weight [out, in] in this version's order. Reference: [in, out]."""
    return weight.T.contiguous()


@operator
def linear_a8w8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> Tensor:
    """int8 weights and activations: an arranged int8 weight, scale [out].

    x [T, in] is divided by ``input_scale`` [1], or by its own absolute maximum / 127 for each
    token where that is None, rounded to the nearest integer (ties to even) and clipped to
    [-128, 127]. The products add up as int32: ``(x8 W8) * (x_scale * scale) + b``.
    """
    x_scale = input_scale
    if x_scale is None:
        x_scale = (paddle.amax(paddle.abs(x), axis=-1, keepdim=True) / INT8_MAX).clip(min=1e-30)
    rounded = paddle.round(x / x_scale).clip(INT8_MIN, INT8_MAX)
    total = None
    for start in range(0, x.shape[1], EXACT):
        part = weight[start : start + EXACT].astype(x.dtype)
        product = paddle.matmul(rounded[:, start : start + EXACT], part)
        total = product if total is None else total + product
    return _add(total * (x_scale * scale), bias)


@operator
def arrange_experts_a8w8(weight: Tensor, experts: int) -> Tensor:
    """An int8 weight [E * out, in], as ``arrange_a8w8`` for each of E experts.

    Reference: [E, in, out].
    """
    return _stack(weight, experts, arrange_a8w8.versions[REFERENCE])


@operator
def expert_linear_a8w8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    experts: Tensor,
    input_scale: Tensor | None,
    out: int,
) -> Tensor:
    """int8 weights and activations as ``linear_a8w8``, for each expert; scale [E * out].

    x [T * k or T, in], experts [T, k] -> [T * k, out].
    """
    product, scales = linear_a8w8.versions[REFERENCE], scale.reshape([-1, out])
    return _each(
        x,
        experts,
        weight.shape[0],
        out,
        lambda rows, e: product(rows, weight[e], scales[e], None, input_scale),
    )


@operator
def arrange_fp8(weight: Tensor) -> Tensor:
    """A float8_e4m3fn weight [out, in] for ``linear_fp8_static`` and ``linear_fp8_block``.

    Reference: [in, out].
    """
    return weight.view("int8").T.contiguous().view("float8_e4m3fn")


@operator
def linear_fp8_static(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor
) -> Tensor:
    """e4m3 weights and activations, these by one scale for all: ``input_scale`` [1], scale [out].

    x / input_scale is clipped to ±448 and rounded to e4m3 (nearest, ties to even); products add
    up in float32: ``(x8 W8) * (input_scale * scale) + b``.
    """
    product = paddle.matmul(round_e4m3(x / input_scale), decode_e4m3(weight, x.dtype))
    return _add(product * (input_scale * scale * E4M3_UNIT), bias)


@operator
def linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int
) -> Tensor:
    """e4m3 in blocks: scale [ceil(out / block), ceil(in / block)] of the weight's blocks.

    Each token's run of ``block`` inputs has a scale of its own, its absolute maximum / 448, by
    which it is divided and rounded to e4m3 as in ``linear_fp8`` (the last run may be shorter).
    ``sum over runs r of (x8_r W8_r) * x_scale_r * scale[:, r] + b``.
    """
    out = weight.shape[1]
    total = None
    for group, start in enumerate(range(0, x.shape[1], block)):
        run = x[:, start : start + block]
        x_scale = (paddle.amax(paddle.abs(run), axis=-1, keepdim=True) / E4M3_MAX).clip(min=1e-30)
        product = paddle.matmul(
            round_e4m3(run / x_scale), decode_e4m3(weight[start : start + block], x.dtype)
        )
        by_output = paddle.repeat_interleave(scale[:, group], block)[:out]
        part = product * (x_scale * E4M3_UNIT) * by_output
        total = part if total is None else total + part
    return _add(total, bias)


@operator
def arrange_experts_fp8(weight: Tensor, experts: int) -> Tensor:
    """A float8_e4m3fn weight [E * out, in], as ``arrange_fp8`` for each of E experts.

    Reference: [E, in, out].
    """
    codes = _stack(weight.view("int8"), experts, lambda part: part.T.contiguous())
    return codes.view("float8_e4m3fn")


@operator
def expert_linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, block: int, out: int
) -> Tensor:
    """e4m3 in blocks as ``linear_fp8_block``, for each expert, whose outputs make whole blocks.

    An arranged weight; scale [E * out / block, ceil(in / block)].
    x [T * k or T, in], experts [T, k] -> [T * k, out].
    """
    product, rows_of = linear_fp8_block.versions[REFERENCE], out // block
    codes = weight.view("int8")

    def one(rows: Tensor, e: int) -> Tensor:
        held = codes[e].view("float8_e4m3fn")
        return product(rows, held, scale[e * rows_of : (e + 1) * rows_of], None, block)

    return _each(x, experts, weight.shape[0], out, one)


@operator
def arrange_groups(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """An integer weight [out, in] (int8) and its scale [out, groups], for ``linear_groups``.

    Reference: the weight [in, out] and the scale [groups, out].
    """
    return weight.T.contiguous(), scale.T.contiguous()


@operator
def linear_groups(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Weight-only integers with groups of any size: ``x (W * scale) + b``; both arranged."""
    groups, out = scale.shape
    whole = weight.astype(x.dtype).reshape([groups, -1, out]) * scale.unsqueeze(1)
    return _add(paddle.matmul(x, whole.reshape([-1, out])), bias)


@operator
def add_zero_points(y: Tensor, x: Tensor, zero: Tensor) -> Tensor:
    """``y + s zero``, s [T, groups] being the sums of x [T, in] over each group of inputs.

    zero [groups, out]: what every weight of a group has in common besides its symmetric part,
    ``(centre - zero_point) * scale``.
    """
    groups = zero.shape[0]
    sums = x.reshape([-1, groups, x.shape[1] // groups]).sum(axis=-1)
    return y + paddle.matmul(sums, zero)


@operator
def scale_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """``(x + shift) * scale`` over the last axis, either of which may be None; x [T, in]."""
    moved = x if shift is None else x + shift
    return moved if scale is None else moved * scale


@operator
def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Columns ``columns`` [in] (int64) of x [T, in], in that order."""
    return paddle.index_select(x, columns, axis=1)


@operator
def join_columns(parts: list[Tensor]) -> Tensor:
    """[T, n_i] side by side: [T, sum of n_i]."""
    return paddle.concat(parts, axis=1)
