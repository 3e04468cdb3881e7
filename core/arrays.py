"""Numpy helpers for parameters: dtypes by name, checked rounding, conversion in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qinfer.core.errors import BadCheckpoint

ROWS = 32
"""Rows converted at a time: a block stays in the processor's cache between its passes."""


_CHUNK = 2**18
"""Elements looked at together: what is held for them stays in the processor's cache."""


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


def round_to(array: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    """``array`` rounded to the nearest numbers of ``dtype`` ("bfloat16", "float16", "float32").

    Raises BadCheckpoint naming the parameter when a number is too large for the dtype.
    """
    if array.dtype == numpy_dtype(dtype):
        return array
    with np.errstate(over="ignore"):  # said below, with the name
        rounded = array.astype(numpy_dtype(dtype))
    if not is_finite(rounded):
        raise BadCheckpoint(
            f"parameter {name} holds numbers too large for {dtype}.",
            remedy="Run it in another precision: --dtype bfloat16 or --dtype float32.",
        )
    return rounded


def is_finite(array: NDArray[Any]) -> bool:
    """Whether no element is NaN or infinite, told from the exponents' bits without conversion.

    ``array`` is C-contiguous, of any floating dtype with 2 or 4 bytes.
    """
    exponent = {
        numpy_dtype("bfloat16"): np.uint16(0x7F80),
        numpy_dtype("float16"): np.uint16(0x7C00),
        numpy_dtype("float32"): np.uint32(0x7F800000),
    }[array.dtype]
    bits = array.reshape(-1).view(exponent.dtype)
    buffer = np.empty(min(_CHUNK, bits.size), exponent.dtype)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        if np.bitwise_and(chunk, exponent, out=buffer[: chunk.size]).max() == exponent:
            return False
    return True
