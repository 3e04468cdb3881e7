"""Row gathers, the gated activation, and the way out of the compute dtype."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn.functional import swiglu

from qinfer.cuda_ops.table import operator


@operator
def embed(token_ids: Tensor, table: Tensor, dtype: str) -> Tensor:
    """Rows of ``table`` [V, H] for ``token_ids`` [T], in ``dtype``: [T, H]."""
    return paddle.gather(table, token_ids).astype(dtype)


@operator
def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows ``rows`` [R] of ``x`` [T, H], all of them in order where R is T: [R, H]."""
    return paddle.gather(x, rows)


@operator
def silu_gate(x: Tensor) -> Tensor:
    """``silu(gate) * up`` for x = [gate | up], [T, 2 I]: [T, I]."""
    return swiglu(x)


@operator
def to_float32(x: Tensor) -> Tensor:
    """``x`` in float32."""
    return x.astype("float32")
