"""Operators made of others, with a layer that is any callable."""

import numpy as np
import paddle
import pytest

from ops import reference64
from qinfer.cuda_ops import ops


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_gated", [True, False])
def test_norm_linear(is_first, is_gated, rng):
    delta, residual = (rng.normal(size=(5, 64)).astype(np.float32) for _ in range(2))
    norm, weight = rng.normal(size=64).astype(np.float32), rng.normal(size=(64, 24))
    layer = paddle.to_tensor(weight.astype(np.float32))
    y, total = ops.norm_linear(
        None if is_first else paddle.to_tensor(delta),
        paddle.to_tensor(residual),
        paddle.to_tensor(norm),
        1e-6,
        lambda x: paddle.matmul(x, layer),
        is_gated,
    )
    summed = residual.astype(np.float64) + (0 if is_first else delta)
    np.testing.assert_allclose(total.numpy(), summed, rtol=1e-6, atol=1e-6)
    expected = reference64.rms_norm(summed, norm, 1e-6) @ weight
    if is_gated:
        gate, up = np.split(expected, 2, axis=1)
        expected = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_gated_mlp(rng):
    delta, residual = (rng.normal(size=(5, 64)).astype(np.float32) for _ in range(2))
    norm = rng.normal(size=64).astype(np.float32)
    first, second = rng.normal(size=(64, 48)), rng.normal(size=(24, 64))
    y, total = ops.gated_mlp(
        *map(paddle.to_tensor, (delta, residual, norm)),
        1e-6,
        lambda x: paddle.matmul(x, paddle.to_tensor(first.astype(np.float32))),
        lambda x: paddle.matmul(x, paddle.to_tensor(second.astype(np.float32))),
    )
    summed = residual.astype(np.float64) + delta
    np.testing.assert_allclose(total.numpy(), summed, rtol=1e-6, atol=1e-6)
    gate, up = np.split(reference64.rms_norm(summed, norm, 1e-6) @ first, 2, axis=1)
    expected = (gate / (1 + np.exp(-gate)) * up) @ second
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-3)
