"""The CUDA versions of fused operators; where they have none, their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle import Tensor

from qinfer.core.types import LayerCache, StepInput
from qinfer.cuda_ops import fused
from qinfer.cuda_ops.table import REFERENCE

FORMATS = {"plain": 0, "int8": 1, "e4m3": 2, "int4": 3}
"""Weight formats, as csrc/cuda/kernels.h counts them."""

_run = paddle._C_ops._run_custom_op


def norm_linear(
    delta: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    layer: Callable[[Tensor], Tensor],
    is_gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """One operator for a layer that shows how its weight is held, one kernel for few rows."""
    held: fused.Held | None = getattr(layer, "held", None)
    if held is None:
        parts = fused.norm_linear.versions[REFERENCE]
        return parts(delta, residual, weight, eps, layer, is_gated)
    inputs = (*_summed(delta, residual), weight, held.weight, held.scale, held.bias)
    attributes = (eps, FORMATS[held.format], held.out, is_gated)
    y, total = _run("qinfer_cuda_norm_linear", *inputs, *attributes)
    return y, residual if delta is None else total


def gated_mlp(
    delta: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    gate_up: Callable[[Tensor], Tensor],
    down: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """One operator where both layers show how they hold their weights: what rounds the inputs of
    the second product is then part of the gate.
    """
    one: fused.Held | None = getattr(gate_up, "held", None)
    other: fused.Held | None = getattr(down, "held", None)
    if one is None or other is None:
        parts = fused.gated_mlp.versions[REFERENCE]
        return parts(delta, residual, weight, eps, gate_up, down)
    weights = (one.weight, one.scale, one.bias, other.weight, other.scale, other.bias)
    attributes = (eps, FORMATS[one.format], one.out, FORMATS[other.format], other.out)
    inputs = (*_summed(delta, residual), weight, *weights)
    y, total = _run("qinfer_cuda_gated_mlp", *inputs, *attributes)
    return y, residual if delta is None else total


def _summed(delta: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the kernels add up: the second may be missing."""
    return (residual, None) if delta is None else (delta, residual)


def attend(
    qkv: Tensor,
    rotary: Tensor,
    batch: StepInput,
    cache: LayerCache,
    scale: float,
    window: int = 0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    query_scale: Tensor | None = None,
) -> Tensor:
    """One operator, and one kernel where each sequence brings one token."""
    return _run(
        "qinfer_cuda_attend",
        qkv,
        rotary,
        batch.positions,
        batch.slot_mapping,
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        q_norm,
        k_norm,
        query_scale,
        batch.query_starts,
        batch.seq_lens,
        batch.block_tables,
        eps,
        scale,
        window,
    )[0]


VERSIONS: dict[Any, Callable[..., Any]] = {
    fused.norm_linear: norm_linear,
    fused.gated_mlp: gated_mlp,
    fused.attend: attend,
}
