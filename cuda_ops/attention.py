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
) -> Tensor:
    """Rotate queries and keys, write keys and values into their slots, return the queries.

    qkv [T, (Hq + 2 Hkv) D] = [q | k | v]. rotary [P, 2 D]: for each position cos twice, then
    -sin, then sin (half-rotation: dimension i pairs with i + D/2; arXiv:2104.09864).
    positions, slot_mapping [T]. Caches [blocks, block_size, Hkv, D], written in place; a version
    may order what is inside a block as its ``paged_attention`` wants it. Returns [T, Hq, D].
    """
    kv_heads, dim = key_cache.shape[2], key_cache.shape[3]
    heads = qkv.shape[1] // dim
    table = paddle.gather(rotary, positions).unsqueeze(1)
    cos, sin = table[:, :, :dim], table[:, :, dim:]
    rotated = qkv.reshape([-1, heads, dim])[:, : heads - kv_heads]
    low, high = rotated[:, :, : dim // 2], rotated[:, :, dim // 2 :]
    rotated = rotated * cos + paddle.concat([high, low], axis=-1) * sin
    queries = heads - 2 * kv_heads
    width = kv_heads * dim
    _write(key_cache, slot_mapping, rotated[:, queries:].reshape([-1, width]))
    _write(value_cache, slot_mapping, qkv[:, (heads - kv_heads) * dim :])
    return rotated[:, :queries]


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
) -> Tensor:
    """Causal softmax attention of each sequence's last queries over its cached keys.

    queries [T, Hq, D], sequence s having rows query_starts[s] : query_starts[s + 1], which are its
    last tokens of seq_lens[s]; query head h reads KV head h // (Hq / Hkv). block_tables [S, W].
    Slots past a sequence's length are never read. Returns [T, Hq * D].
    """
    starts, lengths = query_starts.tolist(), seq_lens.tolist()
    outputs = [
        _attend_one(queries[start:end], key_cache, value_cache, block_tables[row], length, scale)
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
    if count > 1:
        hidden = paddle.full([count, length], float("-inf"), dtype=scores.dtype)
        mask = paddle.triu(hidden, diagonal=length - count + 1)
        scores = (scores.reshape([-1, count, length]) + mask).reshape([kv_heads, -1, length])
    mixed = paddle.matmul(softmax(scores, axis=-1), values)
    mixed = mixed.reshape([kv_heads, -1, count, dim]).transpose([2, 0, 1, 3])
    return mixed.reshape([count, heads * dim])
