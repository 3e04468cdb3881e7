"""The CPU versions of a mixture of experts.

Those of products need experts whose outputs make whole panels, so that each begins where a panel
does; the reference has the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from paddle import Tensor

from qinfer.cuda_ops import ops
from qinfer.cuda_ops.native_table import CPU, FORMATS, native, run
from qinfer.cuda_ops.table import REFERENCE, Operator

PANEL = 16
"""Outputs that make whole panels of a packed weight, whatever a panel's size here."""

P = ParamSpec("P")
R = TypeVar("R")


def _in_panels(
    entry: Operator[P, R], outputs: Callable[P, int]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """As ``native``, where ``outputs`` of the arguments, those of one expert, make whole panels."""

    def enter(version: Callable[P, R]) -> Callable[P, R]:
        reference = entry.versions[REFERENCE]

        def either(*args: P.args, **kwargs: P.kwargs) -> R:
            fits = outputs(*args, **kwargs) % PANEL == 0
            return version(*args, **kwargs) if fits else reference(*args, **kwargs)

        return native(entry)(either)

    return enter


@native(ops.route)
def _route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    weights, experts = run("qinfer_route", logits, top_k, normalise)
    return weights, experts


@native(ops.mix_experts)
def _mix_experts(
    routed: Tensor, weights: Tensor, shared: Tensor | None, gate: Tensor | None
) -> Tensor:
    return run("qinfer_mix_experts", routed, weights, shared, gate)[0]


@_in_panels(ops.arrange_experts, lambda weight, experts, dtype: weight.shape[0] // experts)
def _arrange_experts(weight: Tensor, experts: int, dtype: str) -> Tensor:
    return ops.arrange.versions[CPU](weight, dtype)


@_in_panels(ops.arrange_experts_int4, lambda weight, scale, experts: weight.shape[0] // experts)
def _arrange_experts_int4(weight: Tensor, scale: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    return ops.arrange_int4.versions[CPU](weight, scale)


@_in_panels(ops.arrange_experts_a8w8, lambda weight, experts: weight.shape[0] // experts)
def _arrange_experts_a8w8(weight: Tensor, experts: int) -> Tensor:
    return ops.arrange_a8w8.versions[CPU](weight)


@_in_panels(ops.arrange_experts_fp8, lambda weight, experts: weight.shape[0] // experts)
def _arrange_experts_fp8(weight: Tensor, experts: int) -> Tensor:
    return ops.arrange.versions[CPU](weight, "float32")


@_in_panels(ops.expert_linear, lambda x, weight, experts, dtype, out: out)
def _expert_linear(x: Tensor, weight: Tensor, experts: Tensor, dtype: str, out: int) -> Tensor:
    return run("qinfer_expert_linear", x, weight, None, experts, FORMATS[dtype], out)[0]


def _scaled(dtype: str) -> Callable[..., Tensor]:
    """The product with weights of that format and their scales."""

    def product(x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int) -> Tensor:
        return run("qinfer_expert_linear", x, weight, scale, experts, FORMATS[dtype], out)[0]

    return product


for _entry, _dtype in (
    (ops.expert_linear_int8, "int8"),
    (ops.expert_linear_int4, "int4"),
    (ops.expert_linear_fp8, "float8_e4m3fn"),
):
    _in_panels(_entry, lambda x, weight, scale, experts, out: out)(_scaled(_dtype))


@_in_panels(ops.expert_linear_a8w8, lambda x, weight, scale, experts, input_scale, out: out)
def _expert_linear_a8w8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, input_scale: Tensor | None, out: int
) -> Tensor:
    return run("qinfer_expert_linear_a8w8", x, weight, scale, experts, input_scale, out)[0]


@_in_panels(ops.expert_linear_fp8_block, lambda x, weight, scale, experts, block, out: out)
def _expert_linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, block: int, out: int
) -> Tensor:
    return run("qinfer_expert_linear_e4m3_blocks", x, weight, scale, experts, block, out)[0]
