"""Large matrix products, by Paddle: numpy's own threads and Paddle's would wait for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.hardware.place import place

STRIPS = 6
"""Parts that a symmetric product is computed in, seven twelfths of the whole."""


def product(first: NDArray[Any], second: NDArray[Any], *, turned: bool = False) -> NDArray[Any]:
    """[m, k] times [k, n] in their common dtype; with ``turned``, ``first`` is [k, m]."""
    import paddle

    with paddle.no_grad():
        result = paddle.matmul(place(first), place(second), transpose_x=turned)
    return np.asarray(result.numpy())


def gram(x: NDArray[Any]) -> NDArray[Any]:
    """x^T x [n, n] of x [T, n]: what is below the diagonal is computed, in ``STRIPS`` of columns,
    and mirrored.
    """
    width = -(-x.shape[1] // STRIPS)
    result = np.empty((x.shape[1], x.shape[1]), x.dtype)
    for start in range(0, x.shape[1], width):
        strip = slice(start, start + width)
        result[start:, strip] = product(x[:, start:], x[:, strip], turned=True)
        result[strip, start:] = result[start:, strip].T
    return result
