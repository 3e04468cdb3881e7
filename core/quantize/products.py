"""Large matrix products, by Paddle: numpy's own threads and Paddle's would wait for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.hardware.place import place


def product(first: NDArray[Any], second: NDArray[Any], *, turned: bool = False) -> NDArray[Any]:
    """[m, k] times [k, n] in their common dtype; with ``turned``, ``first`` is [k, m]."""
    import paddle

    with paddle.no_grad():
        result = paddle.matmul(place(first), place(second), transpose_x=turned)
    return np.asarray(result.numpy())
