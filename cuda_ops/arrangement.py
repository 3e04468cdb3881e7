"""What a program and its arranged weights depend on, so that another computer can tell."""

from __future__ import annotations

import hashlib

import numpy as np
import paddle
from paddle import Tensor

from qinfer.cuda_ops import build_cuda, ops
from qinfer.cuda_ops.build import sources_digest
from qinfer.cuda_ops.cuda import CUDA
from qinfer.cuda_ops.linear import INT4_GROUP
from qinfer.cuda_ops.native_table import CPU
from qinfer.cuda_ops.table import version_in_use

FORMATS = ("float32", "bfloat16", "int8", "float8_e4m3fn")
SOURCES = "sources"
"""The fact that is not about an order."""
OUT, IN = 48, 2 * INT4_GROUP


def facts() -> dict[str, str]:
    """Facts about the operators in use: the sources of native ones, and for each weight format a
    digest of how they arrange a known weight, which differs between processors but not cards.

    The reference has none: Paddle's own operators are the same everywhere.
    """
    if version_in_use() == CUDA:
        return {SOURCES: build_cuda.sources_digest()[:20]}
    if version_in_use() != CPU:
        return {}
    codes = np.resize(np.arange(-8, 8, dtype=np.int8), (OUT, IN)).copy()
    codes[:, 0] = np.arange(OUT) % 16 - 8  # no two rows alike
    weight = paddle.to_tensor(codes)
    orders = {name: _digest(ops.arrange(_as(weight, name), "float32")) for name in FORMATS}
    scale = paddle.arange(OUT * 2, dtype="float32").reshape([OUT, 2])
    orders["int4"] = _digest(*ops.arrange_int4(weight, scale))
    return {SOURCES: sources_digest(), **{f"order of {n}": d for n, d in orders.items()}}


def _as(weight: Tensor, dtype: str) -> Tensor:
    return weight.view(dtype) if dtype == "float8_e4m3fn" else weight.astype(dtype)


def _digest(*tensors: Tensor) -> str:
    whole = b"".join(tensor.numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(whole).hexdigest()[:8]
