"""Reading the small tensors of a quantised checkpoint, each checked before it is believed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.arrays import ROWS
from qinfer.core.checkpoint.safetensors_file import shown
from qinfer.core.errors import BadCheckpoint
from qinfer.core.protocols import StoredTensors

FLOATS = ("BF16", "F16", "F32", "F64")
MISSING = "is missing, without which a quantised weight cannot be read"
AGAIN = "Download the checkpoint again; if it was quantised by yourself, that went wrong."


def bad(checkpoint: StoredTensors, name: str, what: str) -> BadCheckpoint:
    """The error that a tensor of a quantised checkpoint is wrong."""
    return BadCheckpoint(f"{checkpoint.folder}: tensor {shown(name)} {what}.", remedy=AGAIN)


def need(
    checkpoint: StoredTensors, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    """Raise BadCheckpoint unless there is a tensor of that name, dtype and shape."""
    if name not in checkpoint.names():
        raise bad(checkpoint, name, MISSING)
    if checkpoint.dtype(name) not in dtypes:
        raise bad(checkpoint, name, f"is {checkpoint.dtype(name)} where {dtypes[0]} is needed")
    if checkpoint.shape(name) != shape:
        raise bad(checkpoint, name, f"is {list(checkpoint.shape(name))}, not {list(shape)}")


def read_floats(
    checkpoint: StoredTensors, name: str, count: int, *, scales: bool = True
) -> NDArray[np.float32]:
    """``count`` finite floats, whatever their axes; none negative if they are ``scales``."""
    if name not in checkpoint.names():
        raise bad(checkpoint, name, MISSING)
    if checkpoint.dtype(name) not in FLOATS:
        raise bad(checkpoint, name, f"is {checkpoint.dtype(name)}, which is no float")
    array = np.asarray(checkpoint.read(name)).astype(np.float32).reshape(-1)
    if array.size != count:
        raise bad(checkpoint, name, f"has {array.size} numbers where {count} are needed")
    check_floats(array, scales, f"{checkpoint.folder}: tensor {shown(name)}")
    return array


def check_floats(array: NDArray[Any], scales: bool, what: str) -> None:
    """Raise BadCheckpoint for NaN and infinity, and for a negative scale."""
    if not np.isfinite(array).all():
        raise BadCheckpoint(f"{what} holds NaN or infinity.", remedy=AGAIN)
    if scales and (array < 0).any():
        raise BadCheckpoint(f"{what} is a scale and has negative numbers.", remedy=AGAIN)


def unpack(words: NDArray[np.int32], bits: int, columns: int) -> NDArray[np.uint8]:
    """[rows, n] 32-bit words as [rows, columns] codes, the lowest bits first."""
    per_word, mask = 32 // bits, (1 << bits) - 1
    result = np.empty((len(words), columns), np.uint8)
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    for start in range(0, len(words), ROWS):
        some = np.ascontiguousarray(words[start : start + ROWS]).view(np.uint32)
        codes = (some[:, :, None] >> shifts) & np.uint32(mask)
        result[start : start + ROWS] = codes.reshape(len(some), -1)[:, :columns]
    return result


def signed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Codes 0 to 2^bits - 1 as int8 around 0, which is what ``core.stored`` counts in."""
    around: NDArray[np.int16] = codes.astype(np.int16) - np.int16(1 << (bits - 1))
    return around.astype(np.int8)


def by_group(group_of: NDArray[Any], size: int) -> NDArray[np.int64] | None:
    """The order that puts inputs of one group side by side, given each input's group; None if they
    are so already. Raises ValueError where groups have not ``size`` inputs each.
    """
    wanted = np.arange(len(group_of)) // size
    if np.array_equal(group_of, wanted):
        return None
    order = np.argsort(group_of, kind="stable")
    if not np.array_equal(np.asarray(group_of)[order], wanted):
        raise ValueError("groups of different sizes")
    return order.astype(np.int64)
