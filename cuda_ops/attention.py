"""Rotary embedding with the KV write, and attention over the paged cache."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn.functional import softmax

from qinfer.cuda_ops.table import operator


@operator
def rotary_kv_write(
    qkv: Tensor,
    rotary: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    query_scale: Tensor | None = None,
) -> Tensor:
    """Rotate queries and keys, write keys and values into their slots, return the queries.

    qkv [T, (Hq + 2 Hkv) D] = [q | k | v]. rotary [P, 2 D]: for each position cos twice, then
    -sin, then sin (half-rotation: dimension i pairs with i + D/2; arXiv:2104.09864).
    positions, slot_mapping [T]. Caches [blocks, block_size, Hkv, D], written in place; a version
    may order what is inside a block as its ``paged_attention`` wants it. Returns [T, Hq, D].

    q_norm, k_norm [D]: weights of an RMS norm with ``eps`` over each head before it is rotated
    (Qwen3). query_scale [P]: for each position a factor of the queries (log-n attention).
    """
    kv_heads, dim = key_cache.shape[2], key_cache.shape[3]
    heads = qkv.shape[1] // dim
    qkv = norm_heads(qkv, q_norm, k_norm, eps, kv_heads, dim)
    table = paddle.gather(rotary, positions).unsqueeze(1)
    cos, sin = table[:, :, :dim], table[:, :, dim:]
    rotated = qkv.reshape([-1, heads, dim])[:, : heads - kv_heads]
    low, high = rotated[:, :, : dim // 2], rotated[:, :, dim // 2 :]
    rotated = rotated * cos + paddle.concat([high, low], axis=-1) * sin
    queries = heads - 2 * kv_heads
    width = kv_heads * dim
    _write(key_cache, slot_mapping, rotated[:, queries:].reshape([-1, width]))
    _write(value_cache, slot_mapping, qkv[:, (heads - kv_heads) * dim :])
    return scale_queries(rotated[:, :queries], query_scale, positions)


def norm_heads(
    qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, eps: float, kv_heads: int, dim: int
) -> Tensor:
    """``qkv`` [T, (Hq + 2 Hkv) D] with each head of q and k normalised, where there are weights."""
    if q_norm is None or k_norm is None:
        return qkv
    heads = qkv.reshape([-1, qkv.shape[1] // dim, dim])
    queries = heads.shape[1] - 2 * kv_heads
    parts = paddle.split(heads, [queries, kv_heads, kv_heads], axis=1)
    normed = [
        part * paddle.rsqrt((part * part).mean(axis=-1, keepdim=True) + eps) * weight
        for part, weight in zip(parts[:2], (q_norm, k_norm), strict=True)
    ]
    return paddle.concat([*normed, parts[2]], axis=1).reshape(qkv.shape)


def scale_queries(queries: Tensor, scale: Tensor | None, positions: Tensor) -> Tensor:
    """Queries [T, Hq, D] times the factor [P] of each one's position."""
    if scale is None:
        return queries
    return queries * paddle.gather(scale, positions).reshape([-1, 1, 1])


def _write(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Overwrite rows of the cache seen as [slots, Hkv * D]; the view shares its memory.

    As 32-bit words: Paddle's scatter knows no smaller numbers on a CPU.
    """
    flat = cache.view([cache.shape[0] * cache.shape[1], -1]).view("int32")
    paddle.scatter_(flat, slots, rows.astype(cache.dtype).view("int32"), overwrite=True)


@operator
def paged_attention(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Causal softmax attention of each sequence's last queries over its cached keys.

    queries [T, Hq, D], sequence s having rows query_starts[s] : query_starts[s + 1], which are its
    last tokens of seq_lens[s]; query head h reads KV head h // (Hq / Hkv). block_tables [S, W].
    Slots past a sequence's length are never read. A ``window`` other than 0 is how many of the
    last tokens, its own included, each token sees. Returns [T, Hq * D].
    """
    starts, lengths = query_starts.tolist(), seq_lens.tolist()
    outputs = [
        _attend_one(
            queries[start:end], key_cache, value_cache, block_tables[row], length, scale, window
        )
        for row, (start, end, length) in enumerate(
            zip(starts[:-1], starts[1:], lengths, strict=True)
        )
    ]
    return outputs[0] if len(outputs) == 1 else paddle.concat(outputs)


def _attend_one(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    blocks: Tensor,
    length: int,
    scale: float,
    window: int,
) -> Tensor:
    count, heads, dim = queries.shape
    block_size, kv_heads = key_cache.shape[1], key_cache.shape[2]
    used = blocks[: -(-length // block_size)]
    keys, values = (
        paddle.gather(cache, used)
        .reshape([-1, kv_heads, dim])[:length]
        .astype(queries.dtype)
        .transpose([1, 0, 2])
        for cache in (key_cache, value_cache)
    )
    # The heads that share a KV head become further rows of one product: [Hkv, group * n, D].
    grouped = (queries * scale).reshape([count, kv_heads, -1, dim]).transpose([1, 2, 0, 3])
    scores = paddle.matmul(grouped.reshape([kv_heads, -1, dim]), keys, transpose_y=True)
    if count > 1 or window:
        hidden = paddle.full([count, length], float("-inf"), dtype=scores.dtype)
        mask = paddle.triu(hidden, diagonal=length - count + 1)
        if window:
            mask = mask + paddle.tril(hidden, diagonal=length - count - window)
        scores = (scores.reshape([-1, count, length]) + mask).reshape([kv_heads, -1, length])
    mixed = paddle.matmul(softmax(scores, axis=-1), values)
    mixed = mixed.reshape([kv_heads, -1, count, dim]).transpose([2, 0, 1, 3])
    return mixed.reshape([count, heads * dim])
