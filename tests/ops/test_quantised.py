"""Products of quantised activations and grouped weights, against float64 over the same numbers."""

import ml_dtypes
import numpy as np
import paddle
import pytest

from ops.tools import close, inputs_and_bias, tensors
from qinfer.core.hardware.place import place
from qinfer.core.hardware.start_paddle import import_paddle
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.build import build, plan_build
from qinfer.cuda_ops.record import Recorder, Recording

E4M3 = ml_dtypes.float8_e4m3fn
SHAPES = [(1, 60, 77), (5, 576, 96), (7, 63, 16), (3, 2100, 40)]


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def x_bias(request, rng):
    return inputs_and_bias(request.param, rng)


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


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "block"),
    [(5, 256, 128, 128), (33, 130, 300, 128), (1, 64, 77, 128), (2, 40, 30, 12)],
)
def test_linear_fp8_block(tokens, inputs, outputs, block, rng):
    x = rng.normal(size=(tokens, inputs)).astype(np.float32)
    x[-1, :7] *= 100  # one run with a scale far from the others'
    weight = e4m3(rng, outputs, inputs)
    blocks = (-(-outputs // block), -(-inputs // block))
    scale = rng.uniform(1e-3, 1, blocks).astype(np.float32)
    whole = np.repeat(np.repeat(scale, block, 0)[:outputs], block, 1)[:, :inputs]
    exact = np.zeros((tokens, outputs))
    for start in range(0, inputs, block):
        run = x[:, start : start + block]
        x_scale = np.abs(run).max(axis=1, keepdims=True) / np.float32(448)
        rounded = np.clip(run / x_scale, -448, 448).astype(E4M3).astype(np.float64) * x_scale
        here = slice(start, start + block)
        exact += rounded @ (weight[:, here].astype(np.float64) * whole[:, here]).T
    got = ops.linear_fp8_block(*tensors(x), ops.arrange_fp8(*tensors(weight)), *tensors(scale),
                               None, block)  # fmt: skip
    close(got, exact)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "group"),
    [(5, 96, 40, 1), (1, 96, 77, 32), (33, 128, 5, 128), (3, 1400, 40, 700)],
)
def test_groups_with_zero_points(bits, tokens, inputs, outputs, group, rng):
    """Unsigned codes with a zero point for each group, split as the layers split them."""
    centre, groups = 1 << (bits - 1), inputs // group
    x = rng.normal(size=(tokens, inputs)).astype(np.float32)
    codes = rng.integers(0, 2 * centre, (outputs, inputs))
    zeros = rng.integers(0, 2 * centre, (outputs, groups))
    scale = rng.uniform(0.1, 1, (outputs, groups)).astype(np.float32)
    whole = (codes - np.repeat(zeros, group, 1)) * np.repeat(scale.astype(np.float64), group, 1)
    exact = x.astype(np.float64) @ whole.T
    arranged = ops.arrange_groups(*tensors((codes - centre).astype(np.int8), scale))
    y = ops.linear_groups(*tensors(x), *arranged, None)
    (zero,) = tensors(((centre - zeros) * scale).T.astype(np.float32))
    got = ops.add_zero_points(y, *tensors(x), zero).numpy()
    # A version may round x to sixteen bits of its group's largest magnitude: half a step each.
    step = np.abs(x.reshape(tokens, groups, group)).max(axis=2) / 32767
    centred = (codes - centre) * np.repeat(scale, group, 1)
    worst = step / 2 @ np.abs(centred).reshape(outputs, groups, group).sum(axis=2).T
    assert (np.abs(got - exact) <= worst + 1e-5 * np.abs(exact).max()).all()
    assert np.abs(got - exact).max() <= 1e-4 * np.abs(exact).max()


def test_inputs_are_shifted_scaled_and_reordered(rng):
    x, scale, shift = (rng.normal(size=s).astype(np.float32) for s in ((3, 8), (8,), (8,)))
    order = rng.permutation(8)
    both = ops.scale_shift(*tensors(x, scale, shift)).numpy()
    np.testing.assert_allclose(both, (x + shift) * scale, rtol=1e-6)
    assert (ops.scale_shift(*tensors(x), None, None).numpy() == x).all()
    assert (ops.take_columns(*tensors(x, order)).numpy() == x[:, order]).all()
    joined = ops.join_columns(tensors(x, x[:, :2])).numpy()
    assert (joined == np.concatenate([x, x[:, :2]], axis=1)).all()


def product_of(kind, rng):
    """A product with a weight [200, 128] as a function of x."""
    scale, whole = paddle.ones([200]), paddle.full([1], 0.02)
    (int8,) = tensors(rng.integers(-127, 128, (200, 128)).astype(np.int8))
    held = ops.arrange_fp8(*tensors(e4m3(rng, 200, 128)))
    by_block, by_group = tensors(*(rng.uniform(0.1, 1, s).astype("f4") for s in ((4, 2), (200, 4))))
    small = ops.arrange_groups(paddle.clip(int8.astype("float32"), -8, 7).astype("int8"), by_group)
    a8w8, groups = ops.arrange_a8w8(int8), ops.arrange_groups(int8, by_group)
    zero = tensors(rng.normal(size=(4, 200)).astype(np.float32))[0]
    return {
        "a8w8": lambda x: ops.linear_a8w8(x, a8w8, scale, None, None),
        "fp8_static": lambda x: ops.linear_fp8_static(x, held, scale, None, whole),
        "fp8_block": lambda x: ops.linear_fp8_block(x, held, by_block, None, 64),
        "int8 groups": lambda x: ops.linear_groups(x, *groups, None),
        "int4 groups": lambda x: ops.linear_groups(x, *small, scale),
        "zero points": lambda x: ops.add_zero_points(x[:, :1].tile([1, 200]), x, zero),
    }[kind]


KINDS = ["a8w8", "fp8_static", "fp8_block", "int8 groups", "int4 groups", "zero points"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_neither_others_nor_threads(kind, version, rng):
    if version != "cpu":
        pytest.skip("Paddle's product adds in an order that depends on the shape")
    x, product = rng.normal(size=(50, 128)).astype(np.float32), product_of(kind, rng)
    whole = product(*tensors(x)).numpy()
    try:
        for threads in (1, 2, 3):
            import_paddle(threads)
            for count in (0, 1, 2, 3, 5, 11, 12, 13, 16, 31, 32, 49):
                part = product(*tensors(x[:count])).numpy()
                np.testing.assert_array_equal(part, whole[:count])
    finally:
        import_paddle()  # which sets the number for the whole process


def test_adjusted_products_are_recorded(version, rng):
    """Of a reordered and smoothed input with a grouped weight, beside a block-scaled one."""
    if version != "cpu":
        pytest.skip("Paddle's own operators are not recorded")
    groups, blocks = product_of("int4 groups", rng), product_of("fp8_block", rng)
    order, scale = tensors(rng.permutation(128), rng.normal(size=128).astype(np.float32))

    def compute(x):
        x = ops.scale_shift(ops.take_columns(x, order), scale, scale)
        return ops.join_columns([groups(x), blocks(x)])

    x = rng.normal(size=(3, 128)).astype(np.float32)
    (held,) = tensors(x)
    recording = Recording(Recorder(build(plan_build())), lambda: compute(held))
    assert recording.size == 5
    held.set_value(place(x[::-1].copy()))
    np.testing.assert_array_equal(recording.replay().numpy(), compute(held).numpy())


@pytest.mark.parametrize("repeated", [False, True])
def test_experts_of_fp8_in_blocks_are_single_products(repeated, rng):
    experts, out, width, tokens, top_k, block = 3, 256, 160, 5, 2, 128
    weight = e4m3(rng, experts * out, width)
    scale = rng.uniform(1e-3, 1, (experts * out // block, 2)).astype(np.float32)
    chosen = rng.integers(0, experts, (tokens, top_k)).astype(np.int32)
    x = rng.normal(size=(tokens if repeated else tokens * top_k, width)).astype(np.float32)
    arranged = ops.arrange_experts_fp8(*tensors(weight), experts)
    placed = tensors(scale, chosen)
    got = ops.expert_linear_fp8_block(*tensors(x), arranged, *placed, block, out).numpy()
    for pair, expert in enumerate(chosen.ravel()):
        rows, blocks = (slice(expert * n, (expert + 1) * n) for n in (out, out // block))
        one = ops.arrange_fp8(*tensors(weight[rows]))
        row = x[pair // top_k if repeated else pair][None]
        alone = ops.linear_fp8_block(*tensors(row), one, *tensors(scale[blocks]), None, block)
        expected = alone.numpy()[0]
        # Paddle's own product, the reference's, adds in an order that depends on the rows.
        assert np.abs(got[pair] - expected).max() < 1e-6 * np.abs(expected).max()


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
