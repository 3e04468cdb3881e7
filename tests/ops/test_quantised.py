"""Products of quantised activations and grouped weights, against float64 over the same numbers."""

import ml_dtypes
import numpy as np
import paddle
import pytest

from qinfer.core.device import place
from qinfer.cuda_ops import ops

E4M3 = ml_dtypes.float8_e4m3fn
SHAPES = [(1, 60, 77), (5, 576, 96), (7, 63, 16), (3, 2100, 40)]


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def x_bias(request, rng):
    tokens, inputs, outputs = request.param
    x = rng.normal(size=(tokens, inputs)).astype(np.float32)
    return x, rng.normal(size=outputs).astype(np.float32), (inputs, outputs)


def close(got, expected):
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def tensors(*arrays):
    return [place(np.ascontiguousarray(array)) for array in arrays]


@pytest.mark.parametrize("static", [False, True])
def test_linear_a8w8(x_bias, static, rng):
    x, bias, (inputs, outputs) = x_bias
    x[0, 3], x[0, 4] = 9, -9  # with a static scale these are clipped
    weight = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scale = rng.uniform(1e-3, 1, outputs).astype(np.float32)
    own = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    given = np.array([0.03], np.float32) if static else None
    x_scale = own if given is None else given
    rounded = np.clip(np.rint(x / x_scale), -128, 127).astype(np.int64)
    exact = (rounded @ weight.T.astype(np.int64)) * x_scale.astype(np.float64) * scale + bias
    arranged = ops.arrange_a8w8(*tensors(weight))
    step = place(given) if static else None
    got = ops.linear_a8w8(*tensors(x), arranged, *tensors(scale, bias), step)
    np.testing.assert_allclose(got.numpy(), exact, rtol=2e-6, atol=2e-6 * np.abs(exact).max())


def test_a_zero_token_of_a8w8_is_the_bias():
    weight = ops.arrange_a8w8(place(np.full((4, 8), 127, np.int8)))
    got = ops.linear_a8w8(paddle.zeros([2, 8]), weight, paddle.ones([4]), paddle.ones([4]), None)
    np.testing.assert_array_equal(got.numpy(), np.ones((2, 4)))


def e4m3(rng, *shape):
    return (rng.normal(size=shape) * 40).clip(-448, 448).astype(E4M3)


def test_linear_fp8_static(x_bias, rng):
    x, bias, (inputs, outputs) = x_bias
    x[0, 3] = 50
    weight, scale = e4m3(rng, outputs, inputs), rng.uniform(1e-3, 1, outputs).astype(np.float32)
    step = np.array([0.02], np.float32)  # 50 is beyond 448 of it
    rounded = np.clip(x / step, -448, 448).astype(E4M3).astype(np.float64)
    exact = rounded @ weight.T.astype(np.float64) * step * scale + bias
    arranged = ops.arrange_fp8(*tensors(weight))
    close(ops.linear_fp8_static(*tensors(x), arranged, *tensors(scale, bias, step)), exact)


@pytest.mark.parametrize(("inputs", "outputs"), [(256, 128), (130, 300), (64, 77)])
def test_linear_fp8_block(inputs, outputs, rng):
    block = 128
    x = rng.normal(size=(5, inputs)).astype(np.float32)
    x[1, :7] *= 100  # one run with a scale far from the others'
    weight = e4m3(rng, outputs, inputs)
    blocks = (-(-outputs // block), -(-inputs // block))
    scale = rng.uniform(1e-3, 1, blocks).astype(np.float32)
    whole = np.repeat(np.repeat(scale, block, 0)[:outputs], block, 1)[:, :inputs]
    exact = np.zeros((5, outputs))
    for start in range(0, inputs, block):
        run = x[:, start : start + block]
        x_scale = np.abs(run).max(axis=1, keepdims=True) / np.float32(448)
        rounded = np.clip(run / x_scale, -448, 448).astype(E4M3).astype(np.float64) * x_scale
        here = slice(start, start + block)
        exact += rounded @ (weight[:, here].astype(np.float64) * whole[:, here]).T
    got = ops.linear_fp8_block(*tensors(x), ops.arrange_fp8(*tensors(weight)), *tensors(scale),
                               None, block)  # fmt: skip
    close(got, exact)


@pytest.mark.parametrize("group", [1, 32, 96])
def test_groups_with_zero_points(group, rng):
    """int4 codes 0 to 15 with a zero point for each group, split as the layers split them."""
    x = rng.normal(size=(5, 96)).astype(np.float32)
    codes, groups = rng.integers(0, 16, (40, 96)), 96 // group
    zeros, scale = rng.integers(0, 16, (40, groups)), rng.uniform(0.1, 1, (40, groups))
    exact = (
        x.astype(np.float64) @ ((codes - np.repeat(zeros, group, 1)) * np.repeat(scale, group, 1)).T
    )
    scale = scale.astype(np.float32)
    arranged = ops.arrange_groups(*tensors((codes - 8).astype(np.int8), scale))
    y = ops.linear_groups(*tensors(x), *arranged, None)
    (zero,) = tensors(((8 - zeros) * scale).T.astype(np.float32))
    close(ops.add_zero_points(y, *tensors(x), zero), exact)


def test_inputs_are_shifted_scaled_and_reordered(rng):
    x, scale, shift = (rng.normal(size=s).astype(np.float32) for s in ((3, 8), (8,), (8,)))
    order = rng.permutation(8)
    both = ops.scale_shift(*tensors(x, scale, shift)).numpy()
    np.testing.assert_allclose(both, (x + shift) * scale, rtol=1e-6)
    assert (ops.scale_shift(*tensors(x), None, None).numpy() == x).all()
    assert (ops.take_columns(*tensors(x, order)).numpy() == x[:, order]).all()
    joined = ops.join_columns(tensors(x, x[:, :2])).numpy()
    assert (joined == np.concatenate([x, x[:, :2]], axis=1)).all()


def test_a_row_of_a8w8_does_not_depend_on_the_others(version, rng):
    if version != "cpu":
        pytest.skip("Paddle's product adds in an order that depends on the shape")
    x = rng.normal(size=(50, 128)).astype(np.float32)
    arranged = ops.arrange_a8w8(*tensors(rng.integers(-127, 128, (200, 128)).astype(np.int8)))

    def product(rows):
        return ops.linear_a8w8(*tensors(rows), arranged, paddle.ones([200]), None, None).numpy()

    whole = product(x)
    for count in (1, 2, 3, 5, 11, 12, 13, 31, 32, 49):
        np.testing.assert_array_equal(product(x[:count]), whole[:count])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
def test_experts_of_a8w8_are_single_products(static, repeated, rng):
    experts, out, tokens, top_k = 4, 24, 5, 2
    weight = rng.integers(-127, 128, (experts * out, 40)).astype(np.int8)
    scale = rng.uniform(1e-3, 1, experts * out).astype(np.float32)
    chosen = rng.integers(0, experts, (tokens, top_k)).astype(np.int32)
    x = rng.normal(size=(tokens if repeated else tokens * top_k, 40)).astype(np.float32)
    step = place(np.array([0.02], np.float32)) if static else None
    arranged = ops.arrange_experts_a8w8(*tensors(weight), experts)
    got = ops.expert_linear_a8w8(*tensors(x), arranged, *tensors(scale, chosen), step, out).numpy()
    for pair, expert in enumerate(chosen.ravel()):
        rows = slice(expert * out, (expert + 1) * out)
        one = ops.arrange_a8w8(*tensors(weight[rows]))
        row = x[pair // top_k if repeated else pair][None]
        alone = ops.linear_a8w8(*tensors(row), one, *tensors(scale[rows]), None, step).numpy()
        np.testing.assert_allclose(got[pair], alone[0], rtol=1e-5, atol=1e-5)
