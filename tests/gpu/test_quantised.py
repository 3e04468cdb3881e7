"""The weight formats of pre-quantised checkpoints on a card, against float64."""

import numpy as np
import pytest

from gpu.layers import E4M3, coarse
from gpu.tools import DTYPES, ROUNDING, back, card, e4m3_limit, error, rounded
from qinfer.cuda_ops import ops

ROWS = [1, 5, 17, 64, 65, 200]
SHAPES = [(128, 77), (896, 1152), (4864, 128), (320, 48)]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request):
    return request.param


@pytest.fixture(params=ROWS)
def x_bias(request, shape, rng):
    """float64 inputs, with an outlier, and a bias."""
    x = rng.normal(size=(request.param, shape[0]))
    x[0, 3] = 20
    return x, rng.normal(size=shape[1])


def codes(rng, shape):
    return rng.integers(-127, 128, (shape[1], shape[0])).astype(np.int8)


def e4m3(rng, shape):
    return (rng.normal(size=(shape[1], shape[0])) * 40).clip(-448, 448).astype(E4M3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("static", [False, True])
def test_linear_a8w8(x_bias, shape, static, dtype, rng):
    x, bias = (rounded(part, dtype) for part in x_bias)
    weight = codes(rng, shape)
    scale = rng.uniform(1e-3, 1e-2, shape[1]).astype(np.float32)
    step = np.array([0.03], np.float32)  # 20 is beyond 127 of it
    used = coarse(x, 127)
    if static:
        used = np.rint(x.astype(np.float32) / step).clip(-128, 127).astype(np.float64) * step
    want = used @ weight.T.astype(np.float64) * scale + bias.astype(np.float64)
    got = ops.linear_a8w8(
        card(x),
        ops.arrange_a8w8(card(weight)),
        card(scale),
        card(bias),
        card(step) if static else None,
    )
    assert error(back(got), want) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_fp8_static(x_bias, shape, dtype, rng):
    x, bias = (rounded(part, dtype) for part in x_bias)
    weight, scale = e4m3(rng, shape), rng.uniform(1e-3, 1e-2, shape[1]).astype(np.float32)
    step = np.array([0.02], np.float32)  # 20 is beyond 448 of it
    used = np.clip(x.astype(np.float32) / step, -448, 448).astype(E4M3).astype(np.float64) * step
    want = used @ weight.T.astype(np.float64) * scale + bias.astype(np.float64)
    placed = map(card, (scale, bias, step))
    got = ops.linear_fp8_static(card(x), ops.arrange_fp8(card(weight)), *placed)
    assert error(back(got), want) < e4m3_limit(len(x), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_fp8_block(x_bias, shape, dtype, rng):
    x, bias = (rounded(part, dtype) for part in x_bias)
    weight, block = e4m3(rng, shape), 128
    blocks = (-(-shape[1] // block), -(-shape[0] // block))
    scale = rng.uniform(1e-3, 1e-2, blocks).astype(np.float32)
    whole = np.repeat(np.repeat(scale, block, 0)[: shape[1]], block, 1)[:, : shape[0]]
    want = np.tile(bias.astype(np.float64), (len(x), 1))
    for start in range(0, shape[0], block):
        run = slice(start, start + block)
        used = coarse(x[:, run])
        want += used @ (weight[:, run].astype(np.float64) * whole[:, run]).T
    placed = map(card, (scale, bias))
    got = ops.linear_fp8_block(card(x), ops.arrange_fp8(card(weight)), *placed, block)
    assert error(back(got), want) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [32, 64, 320])
@pytest.mark.parametrize("rows", [1, 70])
def test_groups_with_zero_points(group, rows, dtype, rng):
    """int4 codes 0 to 15 with a zero point for each group, split as the layers split them."""
    width, out = 320, 40
    x = rounded(rng.normal(size=(rows, width)), dtype)
    held, groups = rng.integers(0, 16, (out, width)), width // group
    zeros, scale = rng.integers(0, 16, (out, groups)), rng.uniform(0.1, 1, (out, groups))
    scale = scale.astype(np.float32)
    exact = (held - np.repeat(zeros, group, 1)) * np.repeat(scale.astype(np.float64), group, 1)
    arranged = ops.arrange_groups(card((held - 8).astype(np.int8)), card(scale))
    y = ops.linear_groups(card(x), *arranged, None)
    zero = ((8 - zeros) * scale).T.astype(np.float32)
    got = ops.add_zero_points(y, card(x), card(zero))
    assert error(back(got), x.astype(np.float64) @ exact.T) < 2 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_shifted_scaled_and_reordered(dtype, rng):
    x = rounded(rng.normal(size=(3, 200)), dtype)
    scale, shift = (rng.normal(size=200).astype(np.float32) for _ in range(2))
    order = rng.permutation(200)
    wide = x.astype(np.float64)
    got = back(ops.scale_shift(card(x), card(scale), card(shift)))
    assert error(got, (wide + shift) * scale) < ROUNDING[dtype]
    assert (back(ops.scale_shift(card(x), None, None)) == wide).all()
    assert (back(ops.take_columns(card(x), card(order))) == wide[:, order]).all()
    joined = back(ops.join_columns([card(x), card(rounded(x[:, :17], dtype))]))
    assert (joined == np.concatenate([wide, wide[:, :17]], axis=1)).all()
