"""CUDA graphs: the kernels of a step recorded once, then started by one call."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

R = TypeVar("R")

VIEWS = {"int64": 0, "int32": 1, "float32": 2, "uint8": 3}
"""Types a view may have, as csrc/cuda/tensors.cc counts them."""


class Card:
    """One GPU's stream, reached past Paddle. Errors are RuntimeErrors with CUDA's words."""

    def __init__(self, library: Path, index: int) -> None:
        self.index = index
        self._library = ctypes.CDLL(str(library))
        self._library.qinfer_cuda_error.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of csrc/cuda/tensors.cc's functions."""
        if getattr(self._library, f"qinfer_cuda_{name}")(*arguments):
            raise RuntimeError(self._library.qinfer_cuda_error().decode())

    def wait(self) -> None:
        """Return when everything queued has been done."""
        self.call("wait", self.index)

    def copy(self, to: int, source: int, size: int) -> None:
        """Queue a copy of ``size`` bytes between addresses."""
        self.call(
            "copy",
            self.index,
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
        )

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Bytes of the computer's memory that the card copies from and to by itself."""
        block = ctypes.c_void_p()
        self.call("pin", ctypes.byref(block), ctypes.c_size_t(size))
        buffer = (ctypes.c_uint8 * size).from_address(block.value or 0)
        weakref.finalize(buffer, self.call, "unpin", block).atexit = False
        pinned: NDArray[np.uint8] = np.ctypeslib.as_array(buffer)
        return pinned

    def usage(self) -> tuple[int, int, int]:
        """Bytes that recordings use now, the most they did, and free ones kept."""
        found = [ctypes.c_size_t() for _ in range(3)]
        self._library.qinfer_cuda_usage(self.index, *map(ctypes.byref, found))
        used, peak, kept = (number.value for number in found)
        return used, peak, kept


class Mark:
    """A place in a card's queue that can be waited for, while what comes after it goes on."""

    def __init__(self, card: Card) -> None:
        self._card, self._handle = card, ctypes.c_void_p()
        card.call("new_mark", card.index, ctypes.byref(self._handle))
        weakref.finalize(self, card.call, "drop_mark", self._handle).atexit = False

    def set(self) -> None:
        """Put it behind everything that is queued."""
        self._card.call("set_mark", self._card.index, self._handle)

    def wait(self) -> None:
        """Return when the card has come to it, at once if it was never set."""
        self._card.call("wait_mark", self._handle)


class Graph(Generic[R]):
    """The kernels that ``call`` starts. What it returns is overwritten by each replay; every other
    tensor it makes is given up to the next kernel of this or any other recording.
    """

    def __init__(self, card: Card, call: Callable[[], R]) -> None:
        handle, size = ctypes.c_void_p(), ctypes.c_size_t()
        card.call("begin", card.index)
        try:
            self.result = call()
        finally:
            card.call("end", card.index, ctypes.byref(handle), ctypes.byref(size))
        self.size = size.value
        """How many kernels and copies."""
        self._card, self._handle = card, handle
        weakref.finalize(self, card.call, "drop", handle).atexit = False

    def replay(self) -> R:
        """Queue them all again, on what their inputs hold then."""
        self._card.call("replay", self._card.index, self._handle)
        return self.result


def view(buffer: Tensor, offset: int, shape: list[int], dtype: str) -> Tensor:
    """Bytes ``offset`` on of a uint8 tensor on a card, as a tensor that shares its memory."""
    run = paddle._C_ops._run_custom_op
    return run("qinfer_cuda_view", buffer, offset, shape, VIEWS[dtype])[0]
