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


def _first(name: str) -> Callable[..., Tensor]:
    """The operator of the library that takes what the contract gives, in that order."""
    return lambda *arguments: _run(f"qinfer_cuda_{name}", *arguments)[0]


def _as_it_is(weight: Tensor, *_: Any) -> Tensor:
    """The kernels read a weight as it comes."""
    return weight


def _route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    weights, experts = _run("qinfer_cuda_route", logits, top_k, normalise)
    return weights, experts


def _expert_linear(x: Tensor, weight: Tensor, experts: Tensor, dtype: str, out: int) -> Tensor:
    return _grouped(x, weight, None, experts=experts, out=out, form=PLAIN)


def _of_experts(form: int, rounding: int = AS_IS, group: int = 0) -> Callable[..., Tensor]:
    """The product with each row's expert, for a weight format with its scales."""

    def product(x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int) -> Tensor:
        how = {"form": form, "rounding": rounding, "group": group}
        return _grouped(x, weight, scale, experts=experts, out=out, **how)

    return product


def _expert_linear_a8w8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, input_scale: Tensor | None, out: int
) -> Tensor:
    how = {"form": INT8, "rounding": ROUND_INT8}
    return _grouped(x, weight, scale, experts=experts, input_scale=input_scale, out=out, **how)


def _expert_linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, block: int, out: int
) -> Tensor:
    """Inputs are rounded as in ``_linear_fp8_block``."""
    how = {"form": E4M3, "rounding": ROUND_RUNS, "group": block, "channels": block}
    count = weight.shape[0] // out
    return _grouped(x, weight, scale, experts=experts, out=out, count=count, **how)


def _rounded(form: int, rounding: int) -> Callable[..., Tensor]:
    """A product whose inputs are rounded, by a given scale where there is one."""

    def product(
        x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
    ) -> Tensor:
        how = {"form": form, "rounding": rounding, "out": weight.shape[0]}
        return _grouped(x, weight, scale, bias=bias, input_scale=input_scale, **how)

    return product


def _linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int
) -> Tensor:
    """Inputs are rounded to x's type once more, with their run's scale multiplied in."""
    how = {"form": E4M3, "rounding": ROUND_RUNS, "group": block, "channels": block}
    return _grouped(x, weight, scale, bias=bias, out=weight.shape[0], **how)


def _arrange_int4(weight: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Two weights a byte, in the order of the matrix instruction (csrc/cuda/weights.cuh). Scales of
    larger groups are repeated for each 64 inputs, which is what the kernels know.
    """
    repeats = weight.shape[1] // scale.shape[1] // LANE
    scales = scale if repeats == 1 else scale.repeat_interleave(repeats, axis=1)
    return _run("qinfer_cuda_pack_int4", weight)[0], scales


def _arrange_groups(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return weight, scale


def _linear_groups(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Groups that the kernels do not know are multiplied out first, each time."""
    out, size = scale.shape[0], weight.shape[1] // scale.shape[1]
    if size % LANE == 0:
        return _grouped(x, weight, scale, bias=bias, out=out, form=INT8, group=size)
    whole = _run("qinfer_cuda_ungroup", weight, scale, x)[0]
    return _run("qinfer_cuda_linear", x, whole, None, bias, PLAIN, out)[0]


def _quantise(weight: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    forms = {"int8": INT8, "float8_e4m3fn": E4M3, "int4": INT4}
    codes, scale = _run("qinfer_cuda_quantise", weight, forms[dtype])
    return codes, scale


VERSIONS: Mapping[Any, Callable[..., Any]] = {
    ops.route: _route,
    ops.mix_experts: _first("mix_experts"),
    ops.arrange_experts: _as_it_is,
    ops.arrange_experts_int4: _arrange_int4,
    ops.arrange_experts_a8w8: _as_it_is,
    ops.arrange_experts_fp8: _as_it_is,
    ops.expert_linear: _expert_linear,
    ops.expert_linear_int8: _of_experts(INT8),
    ops.expert_linear_int4: _of_experts(INT4, group=LANE),
    ops.expert_linear_fp8: _of_experts(E4M3, ROUND_E4M3),
    ops.expert_linear_a8w8: _expert_linear_a8w8,
    ops.expert_linear_fp8_block: _expert_linear_fp8_block,
    ops.arrange_int4: _arrange_int4,
    ops.arrange_a8w8: _as_it_is,
    ops.arrange_fp8: _as_it_is,
    ops.arrange_groups: _arrange_groups,
    ops.linear_a8w8: _rounded(INT8, ROUND_INT8),
    ops.linear_fp8_static: _rounded(E4M3, ROUND_E4M3),
    ops.linear_fp8_block: _linear_fp8_block,
    ops.linear_groups: _linear_groups,
    ops.add_zero_points: _first("add_zero_points"),
    ops.scale_shift: _first("scale_shift"),
    ops.take_columns: _first("take_columns"),
    ops.join_columns: _first("join_columns"),
    ops.quantise: _quantise,
}
"""Operator -> its CUDA version; cuda.py enters them into the table."""
