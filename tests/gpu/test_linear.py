"""The CUDA products in each weight format, against float64 over the same quantised values."""

import numpy as np
import pytest

from gpu.layers import E4M3, FORMATS, bare, coarse, layer_of, layer_with, numbers_of
from gpu.tools import DTYPES, ROUNDING, back, card, e4m3_limit, error, rounded
from qinfer.cuda_ops import ops

ROWS = [1, 2, 3, 8, 9, 16, 17, 32, 40, 64, 65, 200, 300]
SHAPES = [(64, 77), (896, 1152), (4864, 896), (1536, 16), (128, 9000)]


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def shape(request):
    return request.param


def inputs(rng, rows, width, dtype):
    return rounded(rng.normal(size=(rows, width)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_linear(dtype, rows, shape, rng):
    x, weight = inputs(rng, rows, shape[0], dtype), inputs(rng, shape[1], shape[0], dtype)
    bias = inputs(rng, 1, shape[1], dtype)[0]
    for given in (bias, None):
        added = None if given is None else card(given)
        got = ops.linear(card(x), ops.arrange(card(weight), dtype), added, dtype, shape[1])
        expected = x.astype(np.float64) @ weight.T.astype(np.float64)
        expected += 0 if given is None else given.astype(np.float64)
        assert error(back(got), expected) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_int8(dtype, rows, shape, rng):
    x, bias = inputs(rng, rows, shape[0], dtype), inputs(rng, 1, shape[1], dtype)[0]
    weight = rng.integers(-127, 128, (shape[1], shape[0])).astype(np.int8)
    scale = rng.uniform(1e-3, 1e-2, shape[1]).astype(np.float32)
    got = ops.linear_int8(card(x), ops.arrange(card(weight), dtype), card(scale), card(bias))
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) * scale + bias.astype(np.float64)
    assert error(back(got), expected) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_int4(dtype, rows, shape, rng):
    x, bias = inputs(rng, rows, shape[0], dtype), inputs(rng, 1, shape[1], dtype)[0]
    weight = rng.integers(-8, 8, (shape[1], shape[0])).astype(np.int8)
    scale = rng.uniform(1e-2, 1e-1, (shape[1], shape[0] // 64)).astype(np.float32)
    arranged, scales = ops.arrange_int4(card(weight), card(scale))
    got = ops.linear_int4(card(x), arranged, scales, card(bias), shape[1])
    whole = weight * np.repeat(scale.astype(np.float64), 64, axis=1)
    expected = x.astype(np.float64) @ whole.T + bias.astype(np.float64)
    assert error(back(got), expected) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_fp8(dtype, rows, shape, rng):
    x, bias = inputs(rng, rows, shape[0], dtype), inputs(rng, 1, shape[1], dtype)[0]
    x[0, 3] = 50  # an outlier, so that one token's small values fall among the subnormals
    weight = (rng.normal(size=(shape[1], shape[0])) * 40).clip(-448, 448).astype(E4M3)
    scale = rng.uniform(1e-4, 1e-3, shape[1]).astype(np.float32)
    got = ops.linear_fp8(card(x), ops.arrange(card(weight), dtype), card(scale), card(bias))
    expected = coarse(x) @ weight.T.astype(np.float64) * scale + bias.astype(np.float64)
    assert error(back(got), expected) < e4m3_limit(rows, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("format_", "rows", "out"),
    [("int8", 600, 144), ("int4", 600, 144), *(("e4m3", 128 + rest, 77) for rest in (12, 20, 40))],
)
def test_more_rows(format_, rows, out, dtype, rng):
    """Weights unpacked for cuBLASLt, and rows that it does not know, 64 at a time and the rest."""
    layer, weight, bias = layer_of(format_, 320, out, rng, dtype=dtype)
    x = inputs(rng, rows, 320, dtype)
    seen = coarse(x) if format_ == "e4m3" else x.astype(np.float64)
    got = back(bare(layer, card(x), dtype))
    assert error(got, seen @ weight.T + bias) < ROUNDING[dtype] * 2**0.5


@pytest.mark.parametrize("format_", FORMATS)
def test_a_vocabulary(format_, rng):
    """More results than the fused kernels have. They repeat, so that few need be computed here."""
    width, part, out = 1024, 256, 65_557
    numbers = [*numbers_of(format_, width, part, rng), inputs(rng, 1, part, "bfloat16")[0]]
    whole = [None if x is None else np.resize(x, (out, *x.shape[1:])) for x in numbers]
    few, many = (layer_with(format_, *each) for each in (numbers, whole))
    for rows in (1, 2, 5):
        x = card(inputs(rng, rows, width, "bfloat16"))
        want, got = back(bare(few, x)), back(bare(many, x))
        repeated = np.resize(want.T, (out, rows)).T
        assert error(got, repeated) < ROUNDING["bfloat16"]


def test_every_e4m3_code_is_read_as_it_is(rng):
    codes = np.arange(256, dtype=np.uint8).view(E4M3)
    finite = np.isfinite(codes.astype(np.float32))
    weight = np.zeros((256, 64), E4M3)
    weight[:, 5] = np.where(finite, codes, 0)
    x = np.zeros((1, 64), np.float32)
    x[0, 5] = 448  # a scale of one
    got = ops.linear_fp8(
        card(rounded(x, "bfloat16")), card(weight), card(np.ones(256, np.float32)), None
    )
    expected = np.where(finite, codes.astype(np.float32), 0) * 448
    np.testing.assert_allclose(back(got)[0], expected, rtol=4e-3)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_inputs_are_divided_as_the_reference_divides(rows, rng):
    """bfloat16 numbers over a step fall halfway between two codes often enough for an inverse to
    show. A weight of ones on the diagonal shows the codes themselves.
    """
    for _ in range(20):
        x = inputs(rng, rows, 256, "bfloat16")
        weight, scale = np.eye(256).astype(E4M3), np.ones(256, np.float32)
        got = back(ops.linear_fp8(card(x), card(weight), card(scale), None))
        wide = x.astype(np.float32)
        step = np.abs(wide).max(axis=1, keepdims=True) / np.float32(448)
        expected = rounded((wide / step).astype(E4M3).astype(np.float32) * step, "bfloat16")
        np.testing.assert_array_equal(got, expected.astype(np.float32))


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_a_product_gives_the_same_bits_again(rows, rng):
    """Parts of a sum that were read before they were written would differ now and then."""
    x = card(inputs(rng, rows, 4864, "bfloat16"))
    weight = card(inputs(rng, 896, 4864, "bfloat16"))
    first = back(ops.linear(x, weight, None, "bfloat16", 896))
    for _ in range(200):
        again = back(ops.linear(x, weight, None, "bfloat16", 896))
        np.testing.assert_array_equal(again, first)
