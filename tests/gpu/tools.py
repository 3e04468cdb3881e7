"""Arrays to the card and back, and how far results may be off."""

import ml_dtypes
import numpy as np
import paddle

from qinfer.core.hardware.place import place

DTYPES = ["bfloat16", "float16"]
ROUNDING = {"bfloat16": 4e-3, "float16": 6e-4}
"""Relative error (of norms) that results rounded once or twice stay below."""
E4M3_ROUNDING = ROUNDING | {"float16": 1.5e-3}
"""The same of products of e4m3 with e4m3, of 3 to 16 rows. Hopper's matrix units keep some 13 bits
of such sums behind the leading one, which was computed for the tests' shapes to cost as much.
"""


def e4m3_limit(rows, dtype):
    """What is allowed of a product of so many rows of e4m3 with e4m3."""
    return (E4M3_ROUNDING if 3 <= rows <= 16 else ROUNDING)[dtype]


def rounded(array, dtype):
    return np.ascontiguousarray(array).astype(getattr(ml_dtypes, dtype, dtype))


def card(array):
    return place(np.ascontiguousarray(array))


def back(tensor):
    host = tensor.cpu()
    return (host.astype("float32") if host.dtype != paddle.float32 else host).numpy()


def error(got, expected):
    assert np.isfinite(got).all()
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)
