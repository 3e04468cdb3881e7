"""Paged caches on the card, as the steps before a tested one left them."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from gpu.tools import card, rounded
from ops import reference64
from qinfer.core.rotary import rotary_table
from qinfer.core.types import LayerCache
from qinfer.cuda_ops import ops

LARGEST = {"int8": 127, "float8_e4m3fn": 448}
"""Of the types of caches that have scales."""


@dataclass(frozen=True)
class Context:
    """A cache, tables of blocks in random order [S, W], and what the cache stands for of each
    sequence's first tokens: keys and values [L, Hkv, D]. All else holds NaN, where its type has it.
    """

    cache: LayerCache
    tables: np.ndarray
    contents: list
    static: list | None

    def slots(self, row, first, last):
        """Of the tokens ``first`` to ``last`` - 1 of a sequence."""
        size = self.cache.keys.shape[1]
        at = np.arange(first, last)
        return self.tables[row, at // size].astype(np.int64) * size + at % size


def empty_cache(blocks, block_size, kv_heads, dim, dtype, static=None):
    """``static``: scales of keys and of values [Hkv], instead of one for each token and head."""
    shape = (blocks, block_size, kv_heads)
    if dtype not in LARGEST:
        numbers = np.full((*shape, dim), np.nan).astype(getattr(ml_dtypes, dtype, dtype))
        return LayerCache(keys=card(numbers), values=card(numbers))
    codes = np.full((*shape, dim), 0x7F, np.uint8)  # e4m3's NaN
    codes = codes.view(getattr(ml_dtypes, dtype, dtype))
    scales = static or [np.full(shape, np.nan, np.float32)] * 2
    keys, values, *scales = map(card, (codes, codes, *scales))
    return LayerCache(keys=keys, values=values, key_scales=scales[0], value_scales=scales[1])


def filled(rng, lengths, written, shape, held, dtype, is_static=False):
    """Room for sequences of ``lengths`` tokens, of which the first ``written`` have been.

    ``shape``: block size, KV heads, dimension; ``held``: the cache's type, ``dtype`` what is
    written. They are written by rotary_kv_write at position 0, where nothing turns.
    """
    block_size, kv_heads, dim = shape
    blocks = [-(-length // block_size) for length in lengths]
    order = rng.permutation(sum(blocks) + 2)
    tables = np.full((len(lengths), max(blocks) + 1), order[-1], np.int32)
    starts = np.cumsum([0, *blocks])
    for row, (start, count) in enumerate(zip(starts[:-1], blocks, strict=True)):
        tables[row, :count] = order[start : start + count]
    static = None
    if is_static:  # scales that some numbers are too large for
        static = list(rng.uniform(2, 4, (2, kv_heads)).astype(np.float32) / LARGEST[held])
    cache = empty_cache(sum(blocks) + 2, block_size, kv_heads, dim, held, static)
    context = Context(cache=cache, tables=tables, contents=[], static=static)
    for row, count in enumerate(written):
        parts = rounded(rng.normal(size=(count, 3, kv_heads, dim)), dtype)
        if count:
            where = context.slots(row, 0, count)
            turn = rotary_table(1, dim, 1e4), np.zeros(count, np.int64)
            ops.rotary_kv_write(
                card(parts.reshape(count, -1)), *map(card, turn), cache, card(where)
            )
        wide = parts.astype(np.float32)
        context.contents.append(
            [held_parts(wide[:, 1 + i], held, static and static[i]) for i in range(2)]
        )
    return context


def held_parts(rows, held, static):
    """What the cache holds of rows [T, Hkv, D], which may be none."""
    return reference64.held_by_cache(rows, held, static) if len(rows) else rows
