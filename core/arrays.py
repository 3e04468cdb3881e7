"""Numpy helpers for packing weights: dtypes by name, and conversion in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

ROWS = 32
"""Rows converted at a time: a block stays in the processor's cache between its passes."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype called ``name``, with ml_dtypes' bfloat16 and float8_e4m3fn."""
    return np.dtype(getattr(ml_dtypes, name, name))


def converted(
    weight: NDArray[Any], dtype: str, convert: Callable[[NDArray[Any], int], NDArray[Any]]
) -> NDArray[Any]:
    """A weight [out, in] converted block by block to ``dtype``.

    ``convert`` gets some rows (one output channel each) and the first one's index, and returns
    them converted. Nothing but the result takes memory of the matrix's size.
    """
    result = np.empty(weight.shape, numpy_dtype(dtype))
    for start in range(0, len(weight), ROWS):
        result[start : start + ROWS] = convert(weight[start : start + ROWS], start)
    return result
