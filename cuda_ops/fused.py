"""Operators that are several others in a row, so that a version can compute them in one go.

Their references call the operators they are made of, in the version in use. A version of its own
is worth having where starting an operator costs more than its work, as in decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paddle import Tensor

from qinfer.core.types import LayerCache, StepInput
from qinfer.cuda_ops.attention import paged_attention, rotary_kv_write
from qinfer.cuda_ops.elementwise import silu_gate
from qinfer.cuda_ops.norm import add_rms_norm, rms_norm
from qinfer.cuda_ops.table import operator


@dataclass(frozen=True, kw_only=True)
class Held:
    """How a linear layer holds its weight. A layer may show it as ``held``, and has to compute
    nothing but the product ``linear_*`` of that format with these arrays.

    ``format``: "plain", "int8", "int4" or "e4m3".
    """

    format: str
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    out: int


@operator
def norm_linear(
    delta: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    layer: Callable[[Tensor], Tensor],
    is_gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """``layer(rms_norm(delta + residual))``, and that sum.

    delta, residual [T, H] (no delta: it is zero), weight [H]; the layer is any callable. With
    ``is_gated`` its outputs are [gate | up] and the result is ``silu_gate`` of them.
    """
    if delta is None:
        x, total = rms_norm(residual, weight, eps), residual
    else:
        x, total = add_rms_norm(delta, residual, weight, eps)
    y = layer(x)
    return (silu_gate(y) if is_gated else y), total


@operator
def gated_mlp(
    delta: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    gate_up: Callable[[Tensor], Tensor],
    down: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """``down`` of the gated ``norm_linear`` with ``gate_up``, and the sum: [T, H] both."""
    hidden, total = norm_linear(delta, residual, weight, eps, gate_up, is_gated=True)
    return down(hidden), total


@operator
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
    """``rotary_kv_write`` of a step's qkv, then ``paged_attention`` of its queries: [T, Hq * D]."""
    queries = rotary_kv_write(
        qkv,
        rotary,
        batch.positions,
        cache,
        batch.slot_mapping,
        q_norm,
        k_norm,
        eps,
        query_scale,
    )
    return paged_attention(
        queries, cache, batch.query_starts, batch.seq_lens, batch.block_tables, scale, window
    )
