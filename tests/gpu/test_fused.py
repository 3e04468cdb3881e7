"""Products with the norm before them and the gate after, against float64."""

import ml_dtypes
import numpy as np
import pytest

from gpu.tools import back, card, error, rounded
from ops import reference64
from qinfer.cuda_ops import ops

E4M3 = ml_dtypes.float8_e4m3fn
SHAPES = [(896, 1152), (64, 80), (1984, 24), (4864, 896)]


def layer_of(format_, width, out, rng):
    """A layer as the schemes build it, and its weight [out, in] in float64."""
    bias = rounded(rng.normal(size=out), "bfloat16")
    scale = rng.uniform(1e-3, 1e-2, out).astype(np.float32)
    if format_ == "plain":
        codes, scale = rounded(rng.normal(size=(out, width)) / 20, "bfloat16"), None
    elif format_ == "int8":
        codes = rng.integers(-127, 128, (out, width)).astype(np.int8)
    elif format_ == "e4m3":
        codes = (rng.normal(size=(out, width)) * 40).clip(-448, 448).astype(E4M3)
    else:
        codes = rng.integers(-8, 8, (out, width)).astype(np.int8)
        scale = rng.uniform(1e-2, 1e-1, (out, width // 64)).astype(np.float32)
    wide = codes.astype(np.float64)
    if scale is not None:
        wide *= np.repeat(scale, 64, axis=1) if format_ == "int4" else scale[:, None]
    if format_ == "int4":
        weight, scales = ops.arrange_int4(card(codes), card(scale))
    else:
        weight, scales = card(codes), None if scale is None else card(scale)
    held = ops.Held(format=format_, weight=weight, scale=scales, bias=card(bias), out=out)

    class Layer:
        def __call__(self, x):
            raise AssertionError("the parts ran")

    layer = Layer()
    layer.held = held
    return layer, wide, bias.astype(np.float64)


def coarse(x, whole=None):
    """Rows in codes of e4m3, with the step of ``whole``, their own if None. In float32, as steps
    are: quotients fall halfway between two codes often enough to show.
    """
    x, whole = (y.astype(np.float32) for y in (x, x if whole is None else whole))
    step = np.abs(whole).max(axis=1, keepdims=True) / np.float32(448)
    return np.clip(x / step, -448, 448).astype(E4M3).astype(np.float64) * step


def normed(x, weight, format_):
    """What a norm may become before a product. In codes of e4m3 it is rounded to bfloat16 first,
    with its row's factor or before that, when the step is that of what is not rounded yet. Which of
    the two it is decides for some numbers about the code, and codes are 1/16 apart.
    """
    exact = reference64.rms_norm(x, weight, 1e-6)
    if format_ != "e4m3":
        return [exact]
    factor = (np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-6) ** -0.5
    early = x.astype(np.float64) * weight
    return [
        coarse(rounded(exact, "bfloat16")),
        coarse(rounded(early, "bfloat16"), early) * factor,
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("format_", ["plain", "int8", "e4m3", "int4"])
@pytest.mark.parametrize(
    ("rows", "is_first", "is_gated"),
    [(1, 0, 0), (1, 0, 1), (5, 1, 0), (40, 0, 0), (65, 0, 1), (300, 1, 0)],
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
        if not is_gated:
            return y
        gate, up = np.split(y, 2, axis=1)
        return gate / (1 + np.exp(-gate)) * up

    nearest = min(
        error(back(got), product(x)) for x in normed(both, norm.astype(np.float64), format_)
    )
    assert nearest < (2e-2 if is_gated else 1e-2 if format_ == "e4m3" else 6e-3)


@pytest.mark.parametrize("formats", [("e4m3", "e4m3"), ("plain", "e4m3"), ("e4m3", "int8")])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 64, 65, 200, 2048])
def test_gated_mlp(rows, formats, rng):
    """The same as its parts, to the bit: what is rounded between the products is the same."""
    width, wide = 256, 2 * 704
    layers = [
        layer_of(kind, *size, rng)[0]
        for kind, size in zip(formats, ((width, wide), (wide // 2, width)), strict=True)
    ]
    delta, residual = (rounded(rng.normal(size=(rows, width)) * 3, "bfloat16") for _ in range(2))
    norm = rounded(rng.normal(size=width) / 4 + 1, "bfloat16")
    x = (card(delta), card(residual), card(norm), 1e-6)
    got, total = ops.gated_mlp(*x, *layers)
    hidden, summed = ops.norm_linear(*x, layers[0], True)
    calls = {"e4m3": ops.linear_fp8, "int8": ops.linear_int8}
    held = layers[1].held
    expected = calls[formats[1]](hidden, held.weight, held.scale, held.bias)
    np.testing.assert_array_equal(back(total), back(summed))
    np.testing.assert_array_equal(back(got), back(expected))


@pytest.mark.parametrize("width", [64, 2064, 4864, 12000])
@pytest.mark.parametrize("rows", [3, 20])
def test_a_norm_is_rounded_as_its_result_would_be(rows, width, rng):
    """With ones on the weight's diagonal the product shows the codes."""
    x = card(rounded(rng.normal(size=(rows, width)) * 3, "bfloat16"))
    norm = card(rounded(rng.normal(size=width) / 4 + 1, "bfloat16"))
    weight = card(np.eye(48, width).astype(E4M3))
    scale = card(np.ones(48, np.float32))

    class Layer:
        held = ops.Held(format="e4m3", weight=weight, scale=scale, bias=None, out=48)

    got, _ = ops.norm_linear(None, x, norm, 1e-6, Layer())
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
