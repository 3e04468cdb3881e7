"""One safetensors file: a checked list of its tensors, each mapped on its own when asked for."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qinfer.core.errors import BadCheckpoint
from qinfer.core.hardware.memory import ask_for_huge_pages

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

IMPOSTORS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, the placeholder of a file that was not downloaded "
        "(run 'git lfs pull' in its repository)",
    ),
    (b"PK\x03\x04", "is a zip archive, such as a PyTorch .bin file, and not safetensors"),
    (b"GGUF", "is a GGUF file and not safetensors"),
    (b"<!DOCTYPE", "is a web page, perhaps the error message of a failed download"),
    (b"<html", "is a web page, perhaps the error message of a failed download"),
)


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where a tensor lies: ``offset`` and ``nbytes`` in bytes, ``dtype`` in safetensors' words."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one file by name, in the file's order.

    The safetensors library checks the header (size, offsets without gaps or overlaps, shapes)
    before anything in it is believed. Raises BadCheckpoint saying what is wrong with the file.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "is missing"
        raise BadCheckpoint(f"{path} {what}.", remedy="Download the checkpoint again.")
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_no_repeats)
    except OSError as error:
        raise BadCheckpoint(
            f"{path} cannot be read: {error.strerror or error}.",
            remedy="Check the file's permissions and the disk.",
        ) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"{path} {_diagnosis(path, error)}.", remedy="Download the file again."
        ) from error
    header.pop("__metadata__", None)
    return {name: _entry(name, path, 8 + length, fields) for name, fields in header.items()}


def map_tensor(entry: TensorEntry) -> NDArray[Any]:
    """The tensor as a read-only array over a mapping of its own, of the dtype it has on disk.

    When the array goes, its pages are unmapped and leave the process's resident memory.
    Raises BadCheckpoint for a dtype numpy cannot hold.
    """
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise BadCheckpoint(
            f"{entry.file}: tensor {shown(entry.name)} has dtype {entry.dtype}, "
            "which cannot be read.",
            remedy="Use a checkpoint in bfloat16, float16 or float32.",
        )
    if not entry.nbytes:  # nothing to map
        empty = np.empty(entry.shape, dtype)
        empty.flags.writeable = False
        return empty
    count = entry.nbytes // dtype.itemsize
    try:
        mapped = np.memmap(entry.file, dtype, mode="r", offset=entry.offset, shape=(count,))
    except (OSError, ValueError) as error:  # the file changed since its header was read
        raise BadCheckpoint(
            f"{entry.file}: tensor {shown(entry.name)} cannot be read: {error}.",
            remedy="Leave the checkpoint alone while it is being loaded.",
        ) from error
    return np.asarray(mapped).reshape(entry.shape)


def map_file(path: Path, *, writable: bool) -> dict[str, NDArray[Any]]:
    """Every tensor of a file by name, as arrays over one mapping. If ``writable``, a page that is
    written becomes the process's own; all others are shared with whoever maps the file.

    Ask for that only where it is needed: a page from which a card reads by itself is copied first
    if it could be written. Raises BadCheckpoint for a damaged file.
    """
    entries, access = read_entries(path), mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=access)
    ask_for_huge_pages(mapping)
    return {
        name: np.frombuffer(
            mapping,
            DTYPES[entry.dtype],
            entry.nbytes // DTYPES[entry.dtype].itemsize,
            entry.offset,
        ).reshape(entry.shape)
        for name, entry in entries.items()
    }


def shown(name: str) -> str:
    """A name from a file, fit for a terminal: no control characters, not endless."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 160 else f"{text[:120]}…{text[-30:]}"


def _entry(name: str, path: Path, base: int, fields: Mapping[str, Any]) -> TensorEntry:
    start, end = fields["data_offsets"]
    return TensorEntry(
        name=name,
        file=path,
        dtype=fields["dtype"],
        shape=tuple(fields["shape"]),
        offset=base + start,
        nbytes=end - start,
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("its header names a tensor twice")
    return result


def _diagnosis(path: Path, error: Exception) -> str:
    """What is wrong with a file that the safetensors library refused, in words."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        for magic, words in IMPOSTORS:
            if start.startswith(magic):
                return words
        if not size:
            return "is empty"
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > 100_000_000:
            return f"is damaged or not a safetensors file ({error})"
        if 8 + length > size:
            return f"is truncated: its header alone takes {8 + length:,} bytes, it has {size:,}"
        file.seek(8)
        needed = 8 + length + _data_bytes(file.read(length))
    if needed > size:
        return f"is truncated: it has {size:,} of {needed:,} bytes"
    return f"is damaged ({error})"


def _data_bytes(header: bytes) -> int:
    """How many bytes of data an unchecked header speaks of; 0 if it makes no sense."""
    try:
        tensors = [fields for name, fields in json.loads(header).items() if name != "__metadata__"]
        return max((int(fields["data_offsets"][1]) for fields in tensors), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 0


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file. Raises OSError where it cannot be written, such as on a full disk, which the
    library says in an error of its own.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise OSError(str(error)) from error
