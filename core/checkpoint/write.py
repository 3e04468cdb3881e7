"""Writing a safetensors file tensor by tensor, so that only one of them is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.arrays import numpy_dtype
from qinfer.core.checkpoint.safetensors_file import DTYPES

ALIGNED = 64
"""Bytes a cache line has."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A tensor to be written: ``make`` returns it, of ``shape``, to be rounded to ``dtype``."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]
    dtype: str = "bfloat16"

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * numpy_dtype(self.dtype).itemsize


def write_tensors(path: Path, tensors: Sequence[Pending]) -> None:
    """Write the tensors as one safetensors file. OSError passes.

    The data begin on a multiple of 64 bytes, so that a tensor behind others of whole multiples
    lies, when the file is mapped, as it would in memory.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _NAMES[numpy_dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.asarray(tensor.make())
            if array.shape != tensor.shape:
                raise ValueError(f"{tensor.name} is {array.shape}, not {tensor.shape}")
            whole = np.ascontiguousarray(array, dtype=numpy_dtype(tensor.dtype))
            file.write(whole.reshape(-1).view(np.uint8).data)
