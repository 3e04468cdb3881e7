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
    y, total = _run(
        "qinfer_cuda_norm_linear",
        residual if delta is None else delta,
        None if delta is None else residual,
        weight,
        held.weight,
        held.scale,
        held.bias,
        eps,
        FORMATS[held.format],
        held.out,
        is_gated,
    )
    return y, residual if delta is None else total


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


VERSIONS: dict[Any, Callable[..., Any]] = {fused.norm_linear: norm_linear, fused.attend: attend}
