"""Writing a safetensors file tensor by tensor, so that only one of them is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A tensor to be written: ``make`` returns it, of ``shape`` and in any floating dtype."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]


def write_bfloat16(path: Path, tensors: Sequence[Pending]) -> None:
    """Write the tensors, rounded to bfloat16, as one safetensors file. OSError passes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + 2 * prod(tensor.shape)
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin on a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.make(), dtype=ml_dtypes.bfloat16)
            if array.shape != tensor.shape:
                raise ValueError(f"{tensor.name} is {array.shape}, not {tensor.shape}")
            file.write(array.view(np.uint16).data)
