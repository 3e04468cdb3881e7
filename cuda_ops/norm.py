"""Root-mean-square normalisation (arXiv:1910.07467), alone and fused with the residual sum.

Paddle's own fused_rms_norm is not used: its wheel computes it with AVX-512 on every processor, and
one that has none ends the process with SIGILL.
"""

from __future__ import annotations

import paddle
from paddle import Tensor

from qinfer.cuda_ops.table import REFERENCE, operator


@operator
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; x [T, H], weight [H]."""
    return x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


@operator
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of ``x + residual``, and that sum; all [T, H]."""
    total = x + residual
    return rms_norm.versions[REFERENCE](total, weight, eps), total
