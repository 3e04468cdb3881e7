"""Products with the norm before them and the gate after, against float64."""

import numpy as np
import pytest

from gpu.layers import E4M3, FORMATS, Layer, bare, gated, layer_of, normed
from gpu.tools import DTYPES, back, card, error, rounded
from qinfer.cuda_ops import ops

SHAPES = [(896, 1152), (64, 80), (1984, 24), (4864, 896)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("rows", "is_first", "is_gated"),
    [(1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 1), (5, 1, 0), (40, 0, 0), (65, 0, 1), (300, 1, 0)],
)
def test_norm_linear(format_, shape, rows, is_first, is_gated, rng):
    width, out = shape[0], shape[1] * (1 + is_gated)
    layer, weight, bias = layer_of(format_, width, out, rng)
    delta, residual = (rounded(rng.normal(size=(rows, width)) * 3, "bfloat16") for _ in range(2))
    norm = rounded(rng.normal(size=width) / 4 + 1, "bfloat16")
    got, total = ops.norm_linear(
        None if is_first else card(delta), card(residual), card(norm), 1e-6, layer, bool(is_gated)
    )
    both = residual.astype(np.float32) + (0 if is_first else delta.astype(np.float32))
    both = rounded(both, "bfloat16")
    np.testing.assert_array_equal(back(total), both.astype(np.float32))

    def product(x):
        y = x @ weight.T + bias
        return gated(y) if is_gated else y

    nearest = min(
        error(back(got), product(x)) for x in normed(both, norm.astype(np.float64), format_)
    )
    assert nearest < (2e-2 if is_gated else 1e-2 if format_ == "e4m3" else 6e-3)


MLPS = [(rows, 704, 256, "bfloat16") for rows in (1, 2, 3, 16, 17, 64, 65, 200, 2048)]
MLPS += [(2, 704, 256, "float16"), (300, 704, 50, "float16"), (300, 2112, 256, "float16")]
MLPS += [(300, 2112, 50, "bfloat16"), (2048, 2112, 256, "bfloat16")]
"""Rows, what is between the products, results; a library computes none of 50."""


@pytest.mark.parametrize(
    "formats",
    [*((kind, kind) for kind in FORMATS), ("plain", "e4m3"), ("e4m3", "int8")],
    ids="-".join,
)
@pytest.mark.parametrize(("rows", "inner", "out", "dtype"), MLPS)
def test_gated_mlp(rows, inner, out, dtype, formats, rng):
    """The same as its parts, to the bit: what is rounded between the products is the same."""
    width = 256
    layers = [
        layer_of(kind, *size, rng, dtype=dtype)[0]
        for kind, size in zip(formats, ((width, 2 * inner), (inner, out)), strict=True)
    ]
    delta, residual = (rounded(rng.normal(size=(rows, width)) * 3, dtype) for _ in range(2))
    norm = rounded(rng.normal(size=width) / 4 + 1, dtype)
    x = (card(delta), card(residual), card(norm), 1e-6)
    got, total = ops.gated_mlp(*x, *layers)
    hidden, summed = ops.norm_linear(*x, layers[0], True)
    np.testing.assert_array_equal(back(total), back(summed))
    np.testing.assert_array_equal(back(got), back(bare(layers[1], hidden, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 2064, 4864, 12000])
@pytest.mark.parametrize(("rows", "out"), [(3, 48), (20, 48), (140, 50)])
def test_a_norm_is_rounded_as_its_result_would_be(rows, out, width, dtype, rng):
    """With ones on the weight's diagonal the product shows the codes."""
    x = card(rounded(rng.normal(size=(rows, width)) * 3, dtype))
    norm = card(rounded(rng.normal(size=width) / 4 + 1, dtype))
    weight = card(np.eye(out, width).astype(E4M3))
    scale = card(np.ones(out, np.float32))
    layer = Layer(ops.Held(format="e4m3", weight=weight, scale=scale, bias=None, out=out))
    got, _ = ops.norm_linear(None, x, norm, 1e-6, layer)
    expected = ops.linear_fp8(ops.rms_norm(x, norm, 1e-6), weight, scale, None)
    np.testing.assert_array_equal(back(got), back(expected))


def test_a_layer_that_shows_nothing_is_called(rng):
    x, norm = rounded(rng.normal(size=(2, 64)), "bfloat16"), rounded(np.ones(64), "bfloat16")
    seen = []

    def layer(x):
        seen.append(x)
        return x

    got, total = ops.norm_linear(card(x), card(x), card(norm), 1e-6, layer)
    assert len(seen) == 1
    np.testing.assert_array_equal(back(total), 2 * x.astype(np.float32))
    np.testing.assert_array_equal(back(got), back(seen[0]))
