"""Products at the edges of what they are given: sizes that no step or tile divides, rows of zeros,
of tiny and of one-sided numbers, and numbers that are none, which must stay where they are.
"""

import numpy as np
import pytest

from gpu.layers import FORMATS, bare, coarse, gated, layer_of, normed
from gpu.tools import ROUNDING, back, card, rounded
from qinfer.cuda_ops import ops

KINDS = ["bare", "normed", "gated"]
"""A product alone, with a norm and perhaps a residual sum before it, and with a gate behind it."""


class Product:
    """One of KINDS, of a layer of its own."""

    def __init__(self, rng, format_, kind, width, out, dtype="bfloat16", **more):
        self.format, self.kind, self.dtype = format_, kind, dtype
        self.layer, self.weight, self.bias = layer_of(format_, width, out, rng, dtype=dtype, **more)
        self.norm = rounded(rng.normal(size=width) / 4 + 1, dtype)

    def __call__(self, x, residual=None):
        """Of x [T, in], or the sum of both."""
        if self.kind == "bare":
            return back(bare(self.layer, card(x), self.dtype))
        delta, kept = (None, x) if residual is None else (card(x), residual)
        is_gated = self.kind == "gated"
        return back(
            ops.norm_linear(delta, card(kept), card(self.norm), 1e-6, self.layer, is_gated)[0]
        )

    def inputs(self, x):
        """What x may be rounded to before it is multiplied, in float64."""
        if self.kind != "bare":
            return normed(x, self.norm.astype(np.float64), self.format, self.dtype)
        return [coarse(x) if self.format == "e4m3" else x.astype(np.float64)]

    def worst(self, got, x):
        """The largest error of a row, as a part of what it would be if each input, and the result,
        were off by all of itself, independently of each other.
        """
        return min(self._worst(got, used) for used in self.inputs(x))

    def _worst(self, got, x):
        y = x @ self.weight.T + self.bias
        spread = ((x**2) @ (self.weight**2).T + y**2) ** 0.5
        if self.kind == "gated":
            (gate, up), (of_gate, of_up) = (np.split(part, 2, axis=1) for part in (y, spread))
            y = gated(y)
            # the gate's slope is at most 1.1, and silu less than its argument
            spread = ((1.1 * of_gate * up) ** 2 + (gate * of_up) ** 2 + y**2) ** 0.5
        size = np.linalg.norm(spread, axis=1)
        off = np.linalg.norm(got - y, axis=1)
        assert np.isfinite(got).all()
        assert (got[size == 0] == 0).all()
        return np.max(off[size > 0] / size[size > 0], initial=0)

    def allowed(self, out):
        """By rounding: inputs once, results once, and of a few results chance has more say. Codes
        of e4m3 may be other ones where a norm was rounded before (``normed``).
        """
        may_differ = self.format == "e4m3" and self.kind != "bare"
        limit = 1e-2 if may_differ else ROUNDING[self.dtype] * 2**0.5
        return limit * (1 + 1.5 / out**0.5)


def sizes(rng, format_, kind):
    """Inputs and outputs that fill no step (32, 64 or 128 inputs) and no tile (8 or 16 outputs)."""
    unit = 64 if format_ == "int4" else 16
    width = unit * (2 * int(rng.integers(rng.choice([4, 30, 4000 // unit]))) + 1)
    out = int(rng.integers(1, rng.choice([20, 200, 1500])))
    return width, 16 * (out // 8 + 1) if kind == "gated" else out


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "dtype"),
    [*((rows, "bfloat16") for rows in (1, 2, 3, 16, 17)), (2, "float16"), (17, "float16")],
)
def test_sizes_that_nothing_divides(rows, dtype, kind, format_, rng):
    for _ in range(5):
        width, out = sizes(rng, format_, kind)
        product = Product(rng, format_, kind, width, out, dtype, has_bias=bool(rng.integers(2)))
        x = rounded(rng.normal(size=(rows, width)), dtype)
        assert product.worst(product(x), x) < product.allowed(out), (width, out)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("rows", "width"), [(1, 24448), (1, 24512), (2, 12160), (2, 12224), (1, 16384), (2, 16384)]
)
def test_inputs_that_just_fit_a_block(rows, width, format_, rng):
    """And those that just do not, which another kernel has."""
    for kind in KINDS if width <= 16384 else ["bare"]:
        product = Product(rng, format_, kind, width, 48)
        x = rounded(rng.normal(size=(rows, width)), "bfloat16")
        assert product.worst(product(x), x) < product.allowed(48), kind


def odd_rows(rng, width):
    """Zeros; one number; tiny, and so tiny that bfloat16 has fewer bits left; one-sided; large."""
    rows = rng.normal(size=(6, width))
    rows[0] = 0
    rows[1, 1:] = 0
    rows[2] *= 2.0**-70
    rows[3] *= 2.0**-120
    rows[4] += 50
    rows[5] *= 2.0**40
    return rounded(rows, "bfloat16")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(448, 80), (4864, 896)], ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("count", [1, 2, 6])
def test_odd_rows(count, shape, kind, format_, rng):
    """Each is computed as well as others are, alone and beside another one."""
    product = Product(rng, format_, kind, *shape, has_bias=kind != "bare")
    rows = odd_rows(rng, shape[0])
    if format_ == "e4m3":  # the contract's smallest step is 1e-30
        rows = np.delete(rows, 3, axis=0)
    for first in range(len(rows)):
        x = np.roll(rows, -first, axis=0)[:count]
        assert product.worst(product(x), x) < product.allowed(shape[1]), first


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_sum_of_zero(rows, format_, rng):
    """What the residual takes away leaves the bias."""
    product = Product(rng, format_, "normed", 448, 80)
    x = rounded(rng.normal(size=(rows, 448)), "bfloat16")
    got = product(x, -x)
    np.testing.assert_array_equal(got, np.tile(product.bias, (rows, 1)))


MANY = [(rows, "bfloat16") for rows in (1, 2, 5, 16, 40, 64, 100, 300)]
MANY += [(rows, "float16") for rows in (2, 16, 300)]
"""Rows that different kernels multiply."""


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "dtype"), MANY[1:])
def test_a_row_that_is_no_number_leaves_the_others_alone(rows, dtype, kind, format_, rng):
    """Padding of a recorded batch may hold anything."""
    width, out = (192, 80) if rows < 3 else (832, 1488)
    product = Product(rng, format_, kind, width, out, dtype=dtype)
    x = rounded(rng.normal(size=(rows, width)), dtype)
    want, row = product(x), int(rng.integers(rows))
    for value in (np.nan, np.inf, -np.inf):
        x[row, rng.integers(width, size=3)] = value
        got = product(x)
        np.testing.assert_array_equal(np.delete(got, row, 0), np.delete(want, row, 0))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "dtype"), MANY)
def test_a_channel_that_is_no_number_leaves_the_others_alone(rows, dtype, kind, format_, rng):
    """The last one above all, which stands in for those that a tile lacks."""
    width, out = (192, 80) if rows < 3 else (832, 1488)
    out -= 3 * (kind != "gated")
    state, last = rng.bit_generator.state, int(rng.integers(out - 1))
    found = []
    for spoilt in (None, out - 1, last):
        rng.bit_generator.state = state  # the same numbers each time
        product = Product(rng, format_, kind, width, out, dtype=dtype, spoilt=spoilt)
        found.append(product(rounded(rng.normal(size=(rows, width)), dtype)))
    for spoilt, got in zip((out - 1, last), found[1:], strict=True):
        channel = spoilt % got.shape[1]
        assert np.isnan(got[:, channel]).all()
        np.testing.assert_array_equal(np.delete(got, channel, 1), np.delete(found[0], channel, 1))
