"""Products whose tiles fill a Hopper card, which kernels of its own compute, against float64."""

import ml_dtypes
import numpy as np
import pytest

from gpu.layers import coarse, gated, layer_of
from gpu.tools import DTYPES, E4M3_ROUNDING, ROUNDING, back, card, error, rounded
from ops.reference64 import held_by_cache, rms_norm
from qinfer.cuda_ops import ops

ROWS, WIDTH, OUT = 4000, 80, 8432
"""16 pairs of tiles of 128 rows by 33 of 256 outputs, the last of each not full."""

OUT_GATED = 4216
"""The same for tiles of 128 gates and as many that they let through."""


@pytest.mark.parametrize("dtype", DTYPES)
def test_e4m3_rows_and_weights(dtype, rng):
    x = rounded(rng.normal(size=(ROWS, WIDTH)), dtype)
    weight = rounded(rng.normal(size=(OUT, WIDTH)) * 50, "float8_e4m3fn")
    scale = rng.uniform(1e-3, 1e-2, OUT).astype(np.float32)
    bias = rounded(rng.normal(size=OUT), dtype)
    got = back(ops.linear_fp8(card(x), card(weight), card(scale), card(bias)))
    held = held_by_cache(x.astype(np.float32), "float8_e4m3fn").astype(np.float64)
    expected = held @ weight.astype(np.float64).T * scale + bias.astype(np.float64)
    assert error(got, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format_", ["plain", "e4m3"])
def test_gates(format_, dtype, rng):
    layer, weight, bias = layer_of(format_, WIDTH, 2 * OUT_GATED, rng, dtype=dtype)
    x = rounded(rng.normal(size=(ROWS, WIDTH)), dtype)
    norm = rounded(rng.normal(size=WIDTH) / 4 + 1, dtype)
    got, _ = ops.norm_linear(None, card(x), card(norm), 1e-6, layer, True)
    normed = rms_norm(x, norm.astype(np.float64), 1e-6)
    if format_ == "e4m3":
        kept = rounded(normed, dtype).astype(np.float32)
        normed = held_by_cache(kept, "float8_e4m3fn").astype(np.float64)
    expected = gated(normed @ weight.T + bias)
    assert error(back(got), expected) < (4e-2 if format_ == "e4m3" else 2e-2)


SOME = ((80, 8432), (2048, 1000), (9216, 144), (192, 38000), (1600, 8000))
"""Clusters of one to eight blocks share the inputs of a channel; tiles of 64 to 320 channels."""


IN_BF16 = [(rows, "bfloat16") for rows in (3, 16, 17, 40, 64, 100, 128, 190, 300)]


@pytest.mark.parametrize("rows", [3, 8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_few_rows(rows, dtype, rng):
    for width, out in SOME:
        x, weight = (rounded(rng.normal(size=(n, width)), dtype) for n in (rows, out))
        got = back(ops.linear(card(x), ops.arrange(card(weight), dtype), None, dtype, out))
        assert error(got, x.astype(np.float64) @ weight.T.astype(np.float64)) < ROUNDING[dtype]


@pytest.mark.parametrize(("rows", "dtype"), [*IN_BF16, (64, "float16"), (100, "float16")])
@pytest.mark.parametrize("held", ["int8", "float8_e4m3fn"])
def test_some_rows(rows, dtype, held, rng):
    limit = ROUNDING if held == "int8" else E4M3_ROUNDING
    for width, out in SOME:
        x = rounded(rng.normal(size=(rows, width)), dtype)
        codes = rng.integers(-100, 100, (out, width), dtype=np.int8)
        weight = codes.astype(getattr(ml_dtypes, held, held))
        scale = rng.uniform(1e-3, 1e-2, out).astype(np.float32)
        product = ops.linear_int8 if held == "int8" else ops.linear_fp8
        got = back(product(card(x), card(weight), card(scale), None))
        seen = x.astype(np.float64)
        if held != "int8":
            seen = held_by_cache(x.astype(np.float32), held).astype(np.float64)
        expected = seen @ weight.astype(np.float64).T * scale
        assert error(got, expected) < limit[dtype]


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [*IN_BF16[:3], *IN_BF16[4:6], (300, "bfloat16"), (64, "float16"), (100, "float16")],
)
def test_some_rows_of_int4(rows, dtype, rng):
    for width, out in SOME[1:]:
        x = rounded(rng.normal(size=(rows, width)), dtype)
        codes = rng.integers(-8, 8, (out, width), dtype=np.int8)
        scale = rng.uniform(1e-2, 1e-1, (out, width // 64)).astype(np.float32)
        got = back(ops.linear_int4(card(x), *ops.arrange_int4(card(codes), card(scale)), None, out))
        whole = codes * np.repeat(scale.astype(np.float64), 64, axis=1)
        assert error(got, x.astype(np.float64) @ whole.T) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [17, 300, ROWS])
@pytest.mark.parametrize("is_static", [False, True])
def test_a8w8(rows, is_static, dtype, rng):
    """Few rows by one kernel, many by another over unpacked weights."""
    x = rounded(rng.normal(size=(rows, WIDTH)), dtype)
    codes = rng.integers(-127, 128, (OUT, WIDTH), dtype=np.int8)
    scale = rng.uniform(1e-3, 1e-2, OUT).astype(np.float32)
    bias, step = rounded(rng.normal(size=OUT), dtype), np.array([0.02], np.float32)
    seen = coarse(x, 127)
    if is_static:
        seen = np.rint(x.astype(np.float32) / step).clip(-128, 127).astype(np.float64) * step
    weight, given = ops.arrange_a8w8(card(codes)), card(step) if is_static else None
    got = back(ops.linear_a8w8(card(x), weight, card(scale), card(bias), given))
    expected = seen @ codes.astype(np.float64).T * scale + bias.astype(np.float64)
    assert error(got, expected) < ROUNDING[dtype]
