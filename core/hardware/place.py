"""Placing numpy arrays where Paddle computes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qinfer.core.errors import Unsupported
from qinfer.core.types import Array

_CARRIERS: Mapping[str, type[np.generic]] = {
    ml_dtypes.bfloat16.__name__: np.int16,
    ml_dtypes.float8_e4m3fn.__name__: np.int8,
}
"""Numpy types that carry the bits of those Paddle knows and numpy does not."""


def place(array: NDArray[Any], dtype: str = "") -> Array:
    """A numpy array as a Paddle tensor, converted to ``dtype`` if given.

    A writable contiguous array of a type both know is not copied: tensor and array share memory.
    """
    import paddle

    here = paddle.framework._current_expected_place()
    on_processor = isinstance(here, paddle.CPUPlace)
    carrier = _CARRIERS.get(array.dtype.name)
    raw = np.ascontiguousarray(array)
    if carrier is not None:
        raw = raw.view(carrier)
    if not raw.flags.writeable:
        raw = raw.copy() if on_processor or not raw.size else _as_writable(raw)
    tensor = paddle.from_dlpack(raw)
    if carrier is not None:
        tensor = tensor.view(array.dtype.name)
    if dtype and dtype != array.dtype.name:
        tensor = tensor.astype(dtype)
    if on_processor:
        return tensor
    try:
        return tensor._copy_to(here, True)
    except (MemoryError, OSError, RuntimeError) as error:
        size = tensor.size * tensor.element_size() >> 20
        raise Unsupported(
            f"{size} MiB of the model do not fit into the GPU's memory: {error}",
            remedy="Use a smaller model or a --quant scheme, or free memory (see nvidia-smi).",
        ) from error


def _as_writable(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, such as a mapped file, for a reader that asks for more. Not to be written,
    and not to be used for longer than ``array`` is.
    """
    buffer = (ctypes.c_ubyte * array.nbytes).from_address(array.ctypes.data)
    alias: NDArray[Any] = np.ctypeslib.as_array(buffer).view(array.dtype)
    return alias.reshape(array.shape)
