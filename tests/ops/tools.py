"""Arrays as tensors, and how close results have to be."""

import numpy as np

from qinfer.core.hardware.place import place


def tensors(*arrays):
    return [place(np.ascontiguousarray(array)) for array in arrays]


def close(got, expected):
    """To float32's rounding, of the largest result."""
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def inputs_and_bias(shape, rng):
    """x [tokens, inputs], a bias [outputs], and (inputs, outputs)."""
    tokens, inputs, outputs = shape
    x = rng.normal(size=(tokens, inputs)).astype(np.float32)
    return x, rng.normal(size=outputs).astype(np.float32), (inputs, outputs)
