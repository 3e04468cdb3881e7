"""Rotary embedding with the KV write, and attention over the paged cache."""

from __future__ import annotations

import paddle
from paddle import Tensor
from paddle.nn.functional import softmax

from qinfer.core.types import LayerCache
from qinfer.cuda_ops.linear import E4M3_MAX, E4M3_UNIT, decode_e4m3, e4m3_codes
from qinfer.cuda_ops.table import operator


@operator
def rotary_kv_write(
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
    """Rotate queries and keys, write keys and values into their slots, return the queries.

    qkv [T, (Hq + 2 Hkv) D] = [q | k | v]. rotary [P, 2 D]: for each position cos twice, then
    -sin, then sin (half-rotation: dimension i pairs with i + D/2; arXiv:2104.09864).
    positions, slot_mapping [T]. The cache is written in place; a version may order what is inside
    a block as its ``paged_attention`` wants it. Returns [T, Hq, D].

    A cache with scales holds each head's D numbers divided by their scale, clipped to ±127 (int8)
    or ±448 (e4m3) and rounded to the nearest, ties to even. The scale is the head's static one, or
    the largest of these magnitudes / 127 or / 448, which is then written too.

    q_norm, k_norm [D]: weights of an RMS norm with ``eps`` over each head before it is rotated
    (Qwen3). query_scale [P]: for each position a factor of the queries (log-n attention).
    """
    kv_heads, dim = cache.keys.shape[2:]
    heads = qkv.shape[1] // dim
    qkv = norm_heads(qkv, q_norm, k_norm, eps, kv_heads, dim)
    table = paddle.gather(rotary, positions).unsqueeze(1)
    cos, sin = table[:, :, :dim], table[:, :, dim:]
    rotated = qkv.reshape([-1, heads, dim])[:, : heads - kv_heads]
    low, high = rotated[:, :, : dim // 2], rotated[:, :, dim // 2 :]
    rotated = rotated * cos + paddle.concat([high, low], axis=-1) * sin
    queries = heads - 2 * kv_heads
    values = qkv[:, (heads - kv_heads) * dim :].reshape([-1, kv_heads, dim])
    _write(cache.keys, cache.key_scales, slot_mapping, rotated[:, queries:])
    _write(cache.values, cache.value_scales, slot_mapping, values)
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


def _write(cache: Tensor, scales: Tensor | None, slots: Tensor, rows: Tensor) -> None:
    """Overwrite ``slots`` with rows [T, Hkv, D], in place."""
    size = cache.shape[1]
    where = (slots // size, slots % size)
    if scales is not None:
        largest = LARGEST[cache.dtype]
        scale = scales
        if not is_static(scales):
            scale = (paddle.amax(paddle.abs(rows), axis=-1) / largest).clip(min=1e-30)
            paddle.index_put_(scales, where, scale)
        rows = (rows / scale.unsqueeze(-1)).clip(-largest, largest)
        rows = paddle.round(rows) if cache.dtype == paddle.int8 else rows
    numbers = rows.astype(cache.dtype)
    if cache.dtype == paddle.float8_e4m3fn:
        cache, numbers = e4m3_codes(cache), e4m3_codes(numbers)
    paddle.index_put_(cache, where, numbers)


def is_static(scales: Tensor) -> bool:
    """Whether a cache's scales are one of each KV head, for all tokens."""
    return len(scales.shape) == 1


LARGEST = {paddle.int8: 127.0, paddle.float8_e4m3fn: E4M3_MAX}
"""The largest number that is stored."""


def _read(cache: Tensor, scales: Tensor | None, blocks: Tensor, dtype: object) -> Tensor:
    """The rows of these blocks, [slots, Hkv, D] in ``dtype``."""
    heads, dim = cache.shape[2:]
    is_e4m3 = cache.dtype == paddle.float8_e4m3fn
    numbers = paddle.gather(e4m3_codes(cache) if is_e4m3 else cache, blocks)
    rows = numbers.reshape([-1, heads, dim])
    if scales is None:
        return rows.astype(dtype)
    by_slot = scales if is_static(scales) else paddle.gather(scales, blocks)
    scale = by_slot.reshape([-1, heads, 1]).astype(dtype)
    if is_e4m3:
        return decode_e4m3(rows, dtype) * (scale * E4M3_UNIT)
    return rows.astype(dtype) * scale


@operator
def paged_attention(
    queries: Tensor,
    cache: LayerCache,
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
    if not paddle.in_dynamic_mode():
        return _attend_in_a_loop(
            queries, cache, query_starts, seq_lens, block_tables, scale, window
        )
    starts, lengths = query_starts.tolist(), seq_lens.tolist()
    outputs = [
        _attend_one(queries[start:end], cache, block_tables[row], length, scale, window)
        for row, (start, end, length) in enumerate(
            zip(starts[:-1], starts[1:], lengths, strict=True)
        )
    ]
    return outputs[0] if len(outputs) == 1 else paddle.concat(outputs)


def _attend_in_a_loop(
    queries: Tensor,
    cache: LayerCache,
    query_starts: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    """The same in a program, where how many sequences there are is not known yet."""
    # All numbers of one type, or Paddle tells of every conversion.
    starts, lengths = query_starts.astype("int64"), seq_lens.astype("int64")

    def attend(row: Tensor, done: Tensor) -> list[Tensor]:
        start, end = paddle.gather(starts, row), paddle.gather(starts, row + 1)
        own = paddle.slice(queries, [0], [start], [end])
        blocks, length = paddle.gather(block_tables, row)[0], paddle.gather(lengths, row)
        mixed = _attend_one(own, cache, blocks, length, scale, window)
        return [row + 1, paddle.scatter(done, paddle.arange(start, end), mixed)]

    def is_left(row: Tensor, done: Tensor) -> Tensor:
        return row < paddle.numel(seq_lens)

    begin = [paddle.zeros([1], "int64"), paddle.zeros_like(queries).flatten(1)]
    return paddle.static.nn.while_loop(is_left, attend, begin)[1]


def _attend_one(
    queries: Tensor,
    cache: LayerCache,
    blocks: Tensor,
    length: int | Tensor,
    scale: float,
    window: int,
) -> Tensor:
    """Queries [n, Hq, D] of one sequence: [n, Hq * D]."""
    heads, dim = queries.shape[1:]
    block_size, kv_heads = cache.keys.shape[1:3]
    used = blocks[: (length + block_size - 1) // block_size]
    keys, values = (
        _read(part, scales, used, queries.dtype)[:length].transpose([1, 0, 2])
        for part, scales in (
            (cache.keys, cache.key_scales),
            (cache.values, cache.value_scales),
        )
    )
    # The heads that share a KV head become further rows of one product: [Hkv, group * n, D].
    group = heads // kv_heads
    grouped = (queries * scale).reshape([-1, kv_heads, group, dim]).transpose([1, 2, 0, 3])
    scores = paddle.matmul(grouped.reshape([kv_heads, -1, dim]), keys, transpose_y=True)
    scores = scores + paddle.tile(_hidden(queries, length, window), [group, 1])
    mixed = paddle.matmul(softmax(scores, axis=-1), values)
    mixed = mixed.reshape([kv_heads, group, -1, dim]).transpose([2, 0, 1, 3])
    return mixed.reshape([-1, heads * dim])


def _hidden(queries: Tensor, length: int | Tensor, window: int) -> Tensor:
    """What is added to scores [n, length]: -inf for the keys a query must not see."""
    count = queries.shape[0] if paddle.in_dynamic_mode() else paddle.shape(queries)[:1]
    own = paddle.arange(length - count, length).unsqueeze(1)
    keys = paddle.arange(length).unsqueeze(0)
    is_hidden = keys > own
    if window:
        is_hidden = is_hidden | (keys <= own - window)
    return paddle.where(is_hidden, float("-inf"), 0.0).astype(queries.dtype)
