"""Products in each weight format, against float64 over the very same quantised values."""

import ml_dtypes
import numpy as np
import paddle
import pytest

from ops.tools import close, inputs_and_bias, tensors
from qinfer.core.hardware.place import place
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.linear import E4M3_UNIT, decode_e4m3

E4M3 = ml_dtypes.float8_e4m3fn
SHAPES = [(1, 60, 77), (1, 577, 200), (5, 576, 96), (7, 63, 16), (33, 64, 320), (13, 129, 33)]


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def x_bias(request, rng):
    return inputs_and_bias(request.param, rng)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_linear(x_bias, with_bias, dtype, rng):
    x, bias, (inputs, outputs) = x_bias
    target = np.dtype(getattr(ml_dtypes, dtype, dtype))
    weight = rng.normal(size=(outputs, inputs)).astype(target)
    arranged = ops.arrange(*tensors(weight), "float32")
    added = paddle.to_tensor(bias) if with_bias else None
    got = ops.linear(paddle.to_tensor(x), arranged, added, dtype, outputs)
    close(got, x.astype(np.float64) @ weight.astype(np.float64).T + (bias if with_bias else 0))


def test_linear_int8(x_bias, rng):
    x, bias, (inputs, outputs) = x_bias
    weight = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    scale = rng.uniform(1e-3, 1, outputs).astype(np.float32)
    arranged = ops.arrange(*tensors(weight), "float32")
    got = ops.linear_int8(paddle.to_tensor(x), arranged, *tensors(scale, bias)).numpy()
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) * scale + bias
    # A version may round x to sixteen bits of its row's largest magnitude: half a step for each
    # input at the most, and far less in sum.
    step = np.abs(x).max(axis=1, keepdims=True) / 32639
    worst = step / 2 * np.abs(weight.astype(np.float64)).sum(axis=1) * scale
    assert (np.abs(got - exact) <= worst + 1e-5 * np.abs(exact).max()).all()
    assert np.abs(got - exact).max() <= 5e-5 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "group"),
    [(1, 64, 77, 64), (5, 576, 96, 64), (17, 192, 16, 64), (2, 256, 40, 128), (19, 384, 77, 192),
     (1, 576, 33, 576)],
)  # fmt: skip
def test_linear_int4(tokens, inputs, outputs, group, rng):
    x = rng.normal(size=(tokens, inputs)).astype(np.float32)
    x[0, 3] = 40  # an outlier: its group keeps few of its fifteen bits
    weight = rng.integers(-8, 8, (outputs, inputs)).astype(np.int8)
    scale = rng.uniform(1e-2, 1, (outputs, inputs // group)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    arranged, scales = ops.arrange_int4(*tensors(weight, scale))
    got = ops.linear_int4(*tensors(x), arranged, scales, *tensors(bias), outputs).numpy()
    whole = weight.astype(np.float64) * np.repeat(scale.astype(np.float64), group, axis=1)
    exact = x.astype(np.float64) @ whole.T + bias
    # Half a step of its group for each input, added up as the worst case would.
    step = np.abs(x.reshape(tokens, -1, 64)).max(axis=2) / 16319
    worst = step / 2 @ np.abs(whole).reshape(outputs, -1, 64).sum(axis=2).T
    assert (np.abs(got - exact) <= worst + 1e-5 * np.abs(exact).max()).all()
    assert np.sqrt(np.mean((got - exact) ** 2)) <= 1e-4 * np.abs(exact).max()


def test_linear_fp8(x_bias, rng):
    x, bias, (inputs, outputs) = x_bias
    x[0, 3] = 50  # an outlier, so that one token's small values fall among the subnormals
    weight = (rng.normal(size=(outputs, inputs)) * 40).clip(-448, 448).astype(E4M3)
    scale = rng.uniform(1e-3, 1, outputs).astype(np.float32)
    arranged = ops.arrange(*tensors(weight), "float32")
    got = ops.linear_fp8(paddle.to_tensor(x), arranged, *tensors(scale, bias))
    # In float32 as the contract says, so that ties fall the same way; the sum in float64.
    x_scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(448)
    rounded = np.clip(x / x_scale, -448, 448).astype(E4M3).astype(np.float64)
    close(got, rounded @ weight.T.astype(np.float64) * x_scale * scale + bias)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 200), (896, 1100)])
def test_a_row_does_not_depend_on_the_others(dtype, inputs, outputs, version, rng):
    """Bit for bit, in the native version: batch size and chunking change nothing. One row of a
    large weight goes over the outputs in another order, and some of them to whoever is free.
    """
    if version != "cpu":
        pytest.skip("Paddle's product adds in an order that depends on the shape")
    x = rng.normal(size=(50, inputs)).astype(np.float32)
    numbers = rng.normal(size=(outputs, inputs)) * (3 if dtype == "int4" else 30)
    held = "int8" if dtype == "int4" else dtype
    weight = numbers.clip(-8, 7).astype(held) if dtype == "int4" else numbers
    (weight,) = tensors(weight.astype(getattr(ml_dtypes, held, held)))
    scale = paddle.ones([outputs])
    if dtype == "int4":
        arranged, scale = ops.arrange_int4(weight, paddle.ones([outputs, inputs // 64]))
    else:
        arranged = ops.arrange(weight, "float32")

    def product(rows):
        rows = paddle.to_tensor(rows)
        if dtype == "int4":
            return ops.linear_int4(rows, arranged, scale, None, outputs).numpy()
        if dtype == "int8":
            return ops.linear_int8(rows, arranged, scale, None).numpy()
        if dtype == "float8_e4m3fn":
            return ops.linear_fp8(rows, arranged, scale, None).numpy()
        return ops.linear(rows, arranged, None, dtype, outputs).numpy()

    whole = product(x)
    for count in (1, 2, 3, 5, 11, 12, 13, 31, 32, 49):
        np.testing.assert_array_equal(product(x[:count]), whole[:count])


def test_linear_fp8_of_a_zero_token_is_the_bias(rng):
    weight = ops.arrange(place(np.full((4, 8), 448, E4M3)), "float32")
    got = ops.linear_fp8(paddle.zeros([2, 8]), weight, paddle.ones([4]), paddle.ones([4]))
    np.testing.assert_array_equal(got.numpy(), np.ones((2, 4)))


def test_every_e4m3_code_decodes_exactly():
    codes = np.arange(256, dtype=np.uint8).view(E4M3)
    finite = np.isfinite(codes.astype(np.float32))
    assert finite.sum() == 254
    got = decode_e4m3(place(codes.copy()), "float32").numpy() * E4M3_UNIT
    np.testing.assert_array_equal(got[finite], codes.astype(np.float32)[finite])


def test_paddle_rounds_activations_to_the_nearest_e4m3(rng):
    """The cast the operator relies on, over the whole range and at every tie."""
    grid = np.unique(np.abs(np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)))
    grid = grid[np.isfinite(grid)]
    ties = (grid[1:] + grid[:-1]) / 2
    x = np.concatenate([grid, ties, np.nextafter(ties, 0), np.nextafter(ties, 999)])
    x = np.concatenate([x, rng.uniform(0, 448, 10_000)]).clip(0, 448).astype(np.float32)
    x = np.concatenate([x, -x])
    got = paddle.to_tensor(x).astype("float8_e4m3fn").astype("float32").numpy()
    np.testing.assert_array_equal(got, x.astype(E4M3).astype(np.float32))
