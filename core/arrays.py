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


def rounded(block: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """``block`` as float32, after rounding to ``dtype`` where it isn't of that type already."""
    if dtype != "float32" and block.dtype != numpy_dtype(dtype):
        block = block.astype(numpy_dtype(dtype))
    return block.astype(np.float32)


def packed_columns(
    weight: NDArray[Any], dtype: str, convert: Callable[[NDArray[Any], int], NDArray[Any]]
) -> NDArray[Any]:
    """Convert a weight [out, in] block by block into [in, out] of ``dtype``.

    ``convert`` gets some rows (one output channel each) and the first one's index, and returns
    them converted. No second copy of the whole matrix is made.
    """
    outputs, inputs = weight.shape
    packed = np.empty((inputs, outputs), numpy_dtype(dtype))
    for start in range(0, outputs, ROWS):
        packed[:, start : start + ROWS] = convert(weight[start : start + ROWS], start).T
    return packed
