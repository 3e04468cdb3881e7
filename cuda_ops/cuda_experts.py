"""The CUDA versions of mixture of experts and of the less common weight formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import paddle
from paddle import Tensor

from qinfer.cuda_ops import ops

PLAIN, INT8, E4M3, INT4 = range(4)
"""Weight formats, as csrc/cuda/kernels.h counts them."""

AS_IS, ROUND_INT8, ROUND_E4M3, ROUND_RUNS = range(4)
"""What is done to activations first, as csrc/cuda/bindings_experts.cc counts it."""

LANE = 64
"""Inputs that the kernels multiply before they scale: groups are multiples of so many."""

_run = paddle._C_ops._run_custom_op


def _grouped(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    *,
    out: int,
    form: int,
    experts: Tensor | None = None,
    bias: Tensor | None = None,
    rounding: int = AS_IS,
    input_scale: Tensor | None = None,
    group: int = 0,
    channels: int = 1,
    count: int = 0,
) -> Tensor:
    """A product of csrc/cuda/grouped.h. ``group``, ``channels``: inputs and outputs of a scale;
    ``count``: experts, where the scale does not have a row for each of their outputs.
    """
    if experts is not None:
        count = count or (weight if scale is None else scale).shape[0] // out
    tensors = (x, weight, scale, bias, experts, input_scale)
    attributes = (form, out, count or 1, rounding, group, channels)
    return _run("qinfer_cuda_grouped", *tensors, *attributes)[0]


def _route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    weights, experts = _run("qinfer_cuda_route", logits, top_k, normalise)
    return weights, experts


def _mix_experts(
    routed: Tensor, weights: Tensor, shared: Tensor | None, gate: Tensor | None
) -> Tensor:
    return _run("qinfer_cuda_mix_experts", routed, weights, shared, gate)[0]


def _arrange_experts(weight: Tensor, experts: int, dtype: str) -> Tensor:
    return weight


def _expert_linear(x: Tensor, weight: Tensor, experts: Tensor, dtype: str, out: int) -> Tensor:
    return _grouped(x, weight, None, experts=experts, out=out, form=PLAIN)


def _expert_linear_int8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    return _grouped(x, weight, scale, experts=experts, out=out, form=INT8)


def _expert_linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    return _grouped(x, weight, scale, experts=experts, out=out, form=E4M3, rounding=ROUND_E4M3)


def _expert_linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, block: int, out: int
) -> Tensor:
    """Inputs are rounded as in ``_linear_fp8_block``."""
    return _grouped(
        x,
        weight,
        scale,
        experts=experts,
        out=out,
        count=weight.shape[0] // out,
        form=E4M3,
        rounding=ROUND_RUNS,
        group=block,
        channels=block,
    )


def _arrange_int4(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights a byte, in the order of the matrix instruction (csrc/cuda/weights.cuh). Scales of
    larger groups are repeated for each 64 inputs, which is what the kernels know.
    """
    repeats = weight.shape[1] // scale.shape[1] // LANE
    scales = scale if repeats == 1 else scale.repeat_interleave(repeats, axis=1)
    return _run("qinfer_cuda_pack_int4", weight)[0], scales


def _arrange_experts_int4(weight: Tensor, scale: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    return _arrange_int4(weight, scale)


def _expert_linear_int4(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    return _grouped(x, weight, scale, experts=experts, out=out, form=INT4, group=LANE)


def _as_it_is_for_each(weight: Tensor, experts: int) -> Tensor:
    return weight


def _expert_linear_a8w8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    experts: Tensor,
    input_scale: Tensor | None,
    out: int,
) -> Tensor:
    return _grouped(
        x,
        weight,
        scale,
        experts=experts,
        out=out,
        form=INT8,
        rounding=ROUND_INT8,
        input_scale=input_scale,
    )


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _linear_a8w8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> Tensor:
    return _grouped(
        x,
        weight,
        scale,
        bias=bias,
        out=weight.shape[0],
        form=INT8,
        rounding=ROUND_INT8,
        input_scale=input_scale,
    )


def _linear_fp8_static(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor
) -> Tensor:
    return _grouped(
        x,
        weight,
        scale,
        bias=bias,
        out=weight.shape[0],
        form=E4M3,
        rounding=ROUND_E4M3,
        input_scale=input_scale,
    )


def _linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int
) -> Tensor:
    """Inputs are rounded to x's type once more, with their run's scale multiplied in."""
    return _grouped(
        x,
        weight,
        scale,
        bias=bias,
        out=weight.shape[0],
        form=E4M3,
        rounding=ROUND_RUNS,
        group=block,
        channels=block,
    )


def _arrange_groups(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return weight, scale


def _linear_groups(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Groups that the kernels do not know are multiplied out first, each time."""
    out, size = scale.shape[0], weight.shape[1] // scale.shape[1]
    if size % LANE == 0:
        return _grouped(x, weight, scale, bias=bias, out=out, form=INT8, group=size)
    whole = _run("qinfer_cuda_ungroup", weight, scale, x)[0]
    return _run("qinfer_cuda_linear", x, whole, None, bias, PLAIN, out)[0]


def _add_zero_points(y: Tensor, x: Tensor, zero: Tensor) -> Tensor:
    return _run("qinfer_cuda_add_zero_points", y, x, zero)[0]


def _scale_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return _run("qinfer_cuda_scale_shift", x, scale, shift)[0]


def _take_columns(x: Tensor, columns: Tensor) -> Tensor:
    return _run("qinfer_cuda_take_columns", x, columns)[0]


def _join_columns(parts: list[Tensor]) -> Tensor:
    return _run("qinfer_cuda_join_columns", parts)[0]


def _quantise(weight: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    forms = {"int8": INT8, "float8_e4m3fn": E4M3, "int4": INT4}
    codes, scale = _run("qinfer_cuda_quantise", weight, forms[dtype])
    return codes, scale


VERSIONS: Mapping[Any, Callable[..., Any]] = {
    ops.route: _route,
    ops.mix_experts: _mix_experts,
    ops.arrange_experts: _arrange_experts,
    ops.expert_linear: _expert_linear,
    ops.expert_linear_int8: _expert_linear_int8,
    ops.expert_linear_fp8: _expert_linear_fp8,
    ops.expert_linear_fp8_block: _expert_linear_fp8_block,
    ops.arrange_int4: _arrange_int4,
    ops.arrange_experts_int4: _arrange_experts_int4,
    ops.expert_linear_int4: _expert_linear_int4,
    ops.arrange_experts_a8w8: _as_it_is_for_each,
    ops.arrange_experts_fp8: _as_it_is_for_each,
    ops.expert_linear_a8w8: _expert_linear_a8w8,
    ops.arrange_a8w8: _as_it_is,
    ops.linear_a8w8: _linear_a8w8,
    ops.arrange_fp8: _as_it_is,
    ops.linear_fp8_static: _linear_fp8_static,
    ops.linear_fp8_block: _linear_fp8_block,
    ops.arrange_groups: _arrange_groups,
    ops.linear_groups: _linear_groups,
    ops.add_zero_points: _add_zero_points,
    ops.scale_shift: _scale_shift,
    ops.take_columns: _take_columns,
    ops.join_columns: _join_columns,
    ops.quantise: _quantise,
}
"""Operator -> its CUDA version; cuda.py enters them into the table."""
