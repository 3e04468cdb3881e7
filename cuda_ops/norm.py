"""Root-mean-square normalisation (arXiv:1910.07467), alone and fused with the residual sum."""

from __future__ import annotations

from paddle import Tensor
from paddle.incubate.nn.functional import fused_rms_norm

from qinfer.cuda_ops.table import operator


@operator
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; x [T, H], weight [H]."""
    return fused_rms_norm(x, weight, None, eps, 1)[0]


@operator
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of ``x + residual``, and that sum; all [T, H]."""
    normed, total = fused_rms_norm(x, weight, None, eps, 1, None, residual)
    return normed, total
