"""``attend`` against float64: from the QKV product to the attended values, decoding and prompts,
over caches of every type. Shapes, lengths and options are drawn at random.
"""

import numpy as np
import pytest

from gpu.paged import filled
from gpu.tools import DTYPES, back, card, error, rounded
from ops import reference64
from qinfer.core.rotary import rotary_table
from qinfer.core.types import StepInput
from qinfer.cuda_ops import ops

HEADS = [(7, 1), (14, 2), (12, 2), (4, 4), (16, 2), (16, 1), (20, 1)]
"""Heads and KV heads: 7, 6, 1, 8 and 16 to one, and more than a matrix instruction has rows."""

KINDS = {"plain": None, "int8": "int8", "e4m3": "float8_e4m3fn"}
POSITIONS, THETA, EPS = 12000, 1e6, 1e-6
ONE_ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""The most a number changes by as it is rounded, relatively; 0.42 of it in the mean square."""


def limit(dtype, kind, stretch):
    """What the error, relative and of norms, may be.

    The reference rounds where numbers leave a part of the operator: the norms' results, queries,
    keys and values. Within them the weights of the sum are rounded, and its result. A cache of
    eight bits may be widened to the activations' type: values, and keys, whose error scores have
    ``stretch`` times, as that is their deviation. Such errors are independent of each other, so
    it is their squares that add up. What is allowed is 1 / 0.42 times that.
    """
    roundings = 2 + (0 if kind == "plain" else 1 + stretch**2)
    return ONE_ROUNDING[dtype] * roundings**0.5


class Case:
    """A step of ``counts`` new tokens of sequences that then have ``lengths``, on the card."""

    def __init__(self, rng, dtype, kind, heads, dim, counts, lengths, window, size=0):
        self.dtype, self.kind, self.counts, self.lengths = dtype, kind, counts, lengths
        self.heads, self.kv_heads, self.dim, self.window = *heads, dim, window
        size = size or int(rng.choice([8, 16, 32, 64, 128]))
        before = np.subtract(lengths, counts).clip(0).tolist()
        self.held = KINDS[kind] or dtype
        is_static = kind != "plain" and bool(rng.integers(2))
        shape = size, self.kv_heads, dim
        self.context = filled(rng, lengths, before, shape, self.held, dtype, is_static)
        self.starts = np.cumsum([0, *counts]).astype(np.int32)
        width = self.heads + 2 * self.kv_heads
        self.qkv = rounded(rng.normal(size=(self.starts[-1], width, dim)), dtype)
        has_norms, has_factors = rng.integers(2, size=2)
        self.norms = (rounded(rng.normal(size=(2, dim)) / 4 + 1, dtype)) if has_norms else None
        self.factors = rounded(rng.uniform(1, 1.5, POSITIONS), dtype) if has_factors else None
        rows = list(enumerate(zip(before, lengths, strict=True)))
        self.slots = np.concatenate(
            [self.context.slots(s, *span) if span[1] else [-1] for s, span in rows]
        ).astype(np.int64)
        self.positions = np.concatenate(
            [np.arange(*span) + 3 if span[1] else [0] for _, span in rows]
        ).astype(np.int64)

    def attend(self):
        arrays = {
            "token_ids": np.zeros(len(self.qkv), np.int64),
            "positions": self.positions,
            "query_starts": self.starts,
            "seq_lens": np.array(self.lengths, np.int32),
            "slot_mapping": self.slots,
            "block_tables": self.context.tables,
            "logit_rows": np.arange(len(self.qkv)),
        }
        step = StepInput(**{name: card(array) for name, array in arrays.items()})
        norms = [None, None] if self.norms is None else map(card, self.norms)
        factors = None if self.factors is None else card(self.factors)
        table = card(rotary_table(POSITIONS, self.dim, THETA))
        options = self.dim**-0.5, self.window, *norms, EPS, factors
        qkv = card(self.qkv.reshape(len(self.qkv), -1))
        return back(ops.attend(qkv, table, step, self.context.cache, *options))

    def turned(self, token, first, count, norm):
        """Heads of a token, normed and rotated, in float64."""
        rows = self.qkv[token, first : first + count].astype(np.float64)
        if self.norms is not None:
            weight = self.norms[norm].astype(np.float64)
            rows = rounded(reference64.rms_norm(rows, weight, EPS), self.dtype).astype(np.float64)
        return np.stack([reference64.rotate(x, self.positions[token], THETA) for x in rows])

    def query(self, token):
        factor = 1 if self.factors is None else float(self.factors[self.positions[token]])
        turned = self.turned(token, 0, self.heads, 0) * factor
        return rounded(turned, self.dtype).astype(np.float64)

    def new_parts(self, tokens):
        """The keys and values of tokens as the cache will hold them."""
        keys = np.stack([self.turned(t, self.heads, self.kv_heads, 1) for t in tokens])
        values = self.qkv[tokens, self.heads + self.kv_heads :]
        for part, rows in enumerate((keys, values)):
            static = self.context.static and self.context.static[part]
            yield reference64.held_by_cache(rows.astype(np.float32), self.held, static)

    def expected(self, row):
        """A sequence's answer, and its new keys and values."""
        tokens = np.arange(self.starts[row], self.starts[row + 1])
        new = list(self.new_parts(tokens))
        keys, values = (
            np.concatenate(pair) for pair in zip(self.context.contents[row], new, strict=True)
        )
        queries = np.stack([self.query(t) for t in tokens])
        answer = reference64.attention(queries, keys, values, self.dim**-0.5, self.window)
        return answer.reshape(len(tokens), -1), new

    def stored(self):
        """All slots of the cache as numbers, [slots, Hkv, D] of keys and of values."""
        cache = self.context.cache
        for codes, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales)):
            rows = back(codes).reshape(-1, self.kv_heads, self.dim)
            scale = 1 if scales is None else back(scales).reshape(-1, self.kv_heads, 1)
            yield rows * scale

    def check(self):
        before = [part.copy() for part in self.stored()]
        got, after = self.attend(), list(self.stored())
        stretch = 1 if self.factors is None else 1.5
        if self.norms is not None:
            stretch *= 1.0625  # the mean square of the norms' weights
        allowed = limit(self.dtype, self.kind, stretch)
        for row, length in enumerate(self.lengths):
            part = slice(self.starts[row], self.starts[row + 1])
            if not length:
                assert (got[part] == 0).all()
                continue
            want, (keys, values) = self.expected(row)
            assert error(got[part], want) < allowed, f"sequence {row} of {self.lengths}"
            slots = self.slots[part]
            assert error(after[0][slots], keys) < 2e-3  # a code apart here and there
            np.testing.assert_array_equal(after[1][slots], values)
        others = np.setdiff1d(np.arange(len(before[0])), self.slots)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new[others], old[others])


def window_of(rng):
    return int(rng.choice([0, 0, 1, 17, 100, 2000]))


def edges(rng, most):
    """A length at, or just beyond, what a turn of a warp, of a cluster, of all clusters is."""
    turns = np.array([1, 16, 32, 64, 16 * 32, 2048, 4096, 8192])
    turn = int(rng.choice(turns[turns <= most]))
    return max(turn + int(rng.integers(-1, 2)), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: f"{h[0]}x{h[1]}")
@pytest.mark.parametrize(
    ("sequences", "most"), [(1, 600), (1, 10000), (5, 2100), (24, 600), (70, 40)]
)
def test_decoding(dtype, kind, heads, sequences, most, rng):
    """Few sequences have clusters of blocks, long ones several; some are not there."""
    lengths = [edges(rng, most) for _ in range(sequences)]
    if sequences > 1:
        lengths[int(rng.integers(sequences))] = 0
    dim = int(rng.choice([16, 32, 64, 64, 128, 128]))
    Case(rng, dtype, kind, heads, dim, [1] * sequences, lengths, window_of(rng)).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: f"{h[0]}x{h[1]}")
@pytest.mark.parametrize("is_special", [False, True])
def test_prompts(dtype, kind, heads, is_special, rng):
    """Whole ones and later parts of them, beside sequences that bring one token."""
    counts = rng.choice([1, 2, 17, 63, 64, 65, 130], rng.integers(1, 4)).tolist()
    counts.append(int(rng.integers(2, 150)))  # so that not all bring one
    lengths = [count + int(rng.choice([0, 1, 31, 64, 129, 450])) for count in counts]
    window = window_of(rng) if is_special else 0
    others = [] if window or kind != "plain" else [16, 32, 256]
    dim = int(rng.choice([64, 128, 64, 128, *others]))
    Case(rng, dtype, kind, heads, dim, counts, lengths, window).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("size", [20, 24])
def test_prompts_in_blocks_that_the_copy_engine_does_not_know(size, dim, dtype, rng):
    """As on cards without one."""
    Case(rng, dtype, "plain", (14, 2), dim, [130, 1, 40], [130, 70, 100], 0, size).check()
