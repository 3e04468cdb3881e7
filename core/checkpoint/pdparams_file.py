"""The arrays in one of Paddle's pickle files (``.pdparams``), found without unpickling it.

A pickle is a program, and Python's unpickler runs it: it imports and calls what the file names.
Here nothing is imported or called. The few operations that ``paddle.save`` writes for a dictionary
of arrays are followed over plain values; any other operation or name ends the reading.
Arrays are not even read: what comes out is where in the file each one's numbers lie.
Format: what numpy's ``ndarray.__reduce__`` gives, in pickles of protocol 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from qinfer.core.checkpoint.pickle_steps import Global, Payload, PickleSteps, Refused
from qinfer.core.checkpoint.safetensors_file import DTYPES, TensorEntry, shown
from qinfer.core.errors import BadCheckpoint

KINDS = {"f8": "F64", "f4": "F32", "f2": "F16", "u2": "BF16", "i8": "I64", "i4": "I32", "i1": "I8"}
"""numpy's codes; Paddle, which has no unsigned 16-bit numbers, writes bfloat16 as those."""

ARRAY = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
DTYPE, NDARRAY = ("numpy", "dtype"), ("numpy", "ndarray")
EMPTY, PAIR = ("collections", "OrderedDict"), ("builtins", "tuple")
KNOWN = {*ARRAY, DTYPE, NDARRAY, EMPTY, PAIR}
"""All that a file may name, none of which is ever called."""

NAMES = "StructuredToParameterName@@"
"""Paddle's own table of names, beside the arrays."""


@dataclass
class Held:
    """A dtype or an array, before and after its state is known."""

    kind: str
    code: str = ""
    shape: tuple[int, ...] = ()
    data: Payload | None = None


def read_pdparams(path: Path) -> dict[str, TensorEntry]:
    """Where each array lies, by name. Raises BadCheckpoint for a file that is anything but a
    dictionary of arrays, saying what it wanted to do.
    """
    try:
        with path.open("rb") as file:
            steps = PickleSteps(file, path.stat().st_size, KNOWN, _made, _build)
            found = steps.run()
        return {name: _entry(path, name, value) for name, value in _items(found) if name != NAMES}
    except Refused as error:
        raise BadCheckpoint(
            f"{path} is no plain dictionary of arrays: {error}.",
            remedy="Do not open it with Paddle unless you trust where it comes from. Files that "
            "paddle.save writes of a state dictionary, with protocol 4, are read.",
        ) from None
    except OSError as error:
        raise BadCheckpoint(f"{path} cannot be read: {error.strerror or error}.") from error


def _made(call: Any, arguments: Any) -> Any:
    """What stands for the result of a call."""
    path = call.path if isinstance(call, Global) else None
    if path in ARRAY and arguments[0] == Global(NDARRAY):
        return Held("array")
    if path == DTYPE and isinstance(arguments[0], str):
        return Held("dtype", code=arguments[0])
    if path == EMPTY and arguments == ():
        return {}
    if path == PAIR and len(arguments) == 1 and isinstance(arguments[0], tuple):
        return arguments[0]
    raise Refused("it calls something with what does not belong to it")


def _build(target: Any, state: Any) -> None:
    """The state of a dtype: (version, byte order, …); of an array: (version, shape, dtype, whether
    its columns come first, bytes).
    """
    if not isinstance(target, Held) or not isinstance(state, tuple):
        raise Refused("it sets the state of something that is no array")
    if target.kind == "dtype":
        if state[1] not in ("<", "|") or any(part is not None for part in state[2:5]):
            raise Refused("its numbers are big-endian, or records")
        return
    _, shape, dtype, by_columns, data = state
    if by_columns or not isinstance(dtype, Held) or not isinstance(data, Payload):
        raise Refused("an array has its columns first, or holds objects")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError
    target.code, target.shape, target.data = dtype.code, tuple(shape), data


def _items(found: Any) -> list[tuple[str, Any]]:
    if not isinstance(found, dict):
        raise Refused("it holds something else")
    return list(found.items())


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    """An array, or a pair of Paddle's name and it."""
    array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
    if not isinstance(array, Held) or array.kind != "array" or array.data is None:
        raise Refused(f"{shown(name)} is no array")
    kind = KINDS.get(array.code)
    if kind is None:
        raise Refused(f"{shown(name)} has numbers of the kind {array.code!r:.20}")
    if prod(array.shape) * DTYPES[kind].itemsize != array.data.nbytes:
        raise Refused(f"{shown(name)} has {array.data.nbytes:,} bytes, which is not its shape")
    return TensorEntry(
        name=name,
        file=path,
        dtype=kind,
        shape=array.shape,
        offset=array.data.offset,
        nbytes=array.data.nbytes,
    )
