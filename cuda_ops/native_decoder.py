"""The CPU versions of what a decoder has beside matrix products."""

from __future__ import annotations

import paddle
from paddle import Tensor

from qinfer.core.types import LayerCache
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.native_table import native, run
from qinfer.cuda_ops.table import REFERENCE


@native(ops.rotary_kv_write)
def _rotary_kv_write(
    qkv: Tensor,
    rotary: Tensor,
    positions: Tensor,
    cache: LayerCache,
    slot_mapping: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    query_scale: Tensor | None = None,
) -> Tensor:
    if not _fits(cache):
        reference = ops.rotary_kv_write.versions[REFERENCE]
        optional = (q_norm, k_norm, eps, query_scale)
        return reference(qkv, rotary, positions, cache, slot_mapping, *optional)
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    inputs = (qkv, rotary, positions, slot_mapping, *parts, q_norm, k_norm, query_scale)
    return run("qinfer_rotary_kv_write", *inputs, eps)[0]


@native(ops.paged_attention)
def _paged_attention(
    queries: Tensor,
    cache: LayerCache,
    query_starts: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    numbers = (query_starts, seq_lens, block_tables)
    if not _fits(cache):
        reference = ops.paged_attention.versions[REFERENCE]
        return reference(queries, cache, *numbers, scale, window)
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    return run("qinfer_paged_attention", queries, *parts, *numbers, scale, window)[0]


def _fits(cache: LayerCache) -> bool:
    """Whether the kernels, which work in vectors of 16, can use this cache (they then keep keys in
    an order of their own in it).
    """
    _, block_size, _, dim = cache.keys.shape
    return bool(block_size % 16 == 0 and dim % 16 == 0 and cache.keys.dtype != paddle.float16)


@native(ops.silu_gate)
def _silu_gate(x: Tensor) -> Tensor:
    return run("qinfer_silu_gate", x)[0]


@native(ops.rms_norm)
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return run("qinfer_rms_norm", x, None, weight, eps)[0]


@native(ops.add_rms_norm)
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed, total = run("qinfer_rms_norm", x, residual, weight, eps)
    return normed, total


@native(ops.embed)
def _embed(token_ids: Tensor, table: Tensor, dtype: str) -> Tensor:
    return run("qinfer_gather_rows", table, token_ids)[0]


@native(ops.take_rows)
def _take_rows(x: Tensor, rows: Tensor) -> Tensor:
    return run("qinfer_gather_rows", x, rows)[0]


@native(ops.to_float32)
def _to_float32(x: Tensor) -> Tensor:
    return x if x.dtype == paddle.float32 else x.astype("float32")


@native(ops.argmax)
def _argmax(logits: Tensor) -> Tensor:
    return run("qinfer_argmax", logits)[0]


@native(ops.sample)
def _sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    shortlist: int,
) -> Tensor:
    return run("qinfer_sample", logits, temperature, top_k, top_p, min_p, uniform)[0]
