import numpy as np
import paddle
import pytest

from ops import reference64
from qinfer.cuda_ops import ops

SHAPES = [(1, 8), (3, 60), (17, 576), (5, 896)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm(shape, eps, rng):
    x = rng.normal(size=shape).astype(np.float32) * 3
    weight = rng.normal(size=shape[1]).astype(np.float32)
    got = ops.rms_norm(paddle.to_tensor(x), paddle.to_tensor(weight), eps)
    np.testing.assert_allclose(
        got.numpy(), reference64.rms_norm(x, weight, eps), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm(shape, rng):
    x, residual = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    weight = rng.normal(size=shape[1]).astype(np.float32)
    normed, total = ops.add_rms_norm(*map(paddle.to_tensor, (x, residual, weight)), 1e-6)
    summed = x.astype(np.float64) + residual
    np.testing.assert_allclose(total.numpy(), summed, rtol=1e-6, atol=1e-6)
    expected = reference64.rms_norm(summed, weight, 1e-6)
    np.testing.assert_allclose(normed.numpy(), expected, rtol=4e-6, atol=4e-6)


def test_silu_gate(rng):
    x = rng.normal(size=(7, 2 * 77)).astype(np.float32) * 4
    gate, up = np.split(x.astype(np.float64), 2, axis=1)
    expected = gate / (1 + np.exp(-gate)) * up
    got = ops.silu_gate(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_to_float32(dtype, rng, version):
    if version == "cpu" and dtype != "float32":
        pytest.skip("there everything is float32 already")
    x = paddle.to_tensor(rng.normal(size=(3, 5)).astype(np.float32)).astype(dtype)
    got = ops.to_float32(x)
    assert got.dtype == paddle.float32
    np.testing.assert_array_equal(got.numpy(), x.astype("float32").numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embed_takes_rows_in_the_dtype_asked_for(dtype, rng):
    table = paddle.to_tensor(rng.normal(size=(50, 12)).astype(np.float32)).astype(dtype)
    ids = paddle.to_tensor(np.array([0, 49, 7, 7]))
    got = ops.embed(ids, table, "float32")
    assert got.dtype == paddle.float32
    np.testing.assert_array_equal(got.numpy(), table.astype("float32").numpy()[[0, 49, 7, 7]])
