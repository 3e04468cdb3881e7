"""Recording the native operators of a step and running them again in one call.

What CUDA graphs are to a GPU. An eager step spends 5 µs in Python and Paddle for each operator; a
replay spends none, and its threads wait for each other a fraction of a microsecond between two
operators. The operators work on the same addresses every time: inputs are changed in place.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R")


class Recorder:
    """The entry points of a built library that ``record`` and replay."""

    def __init__(self, library: Path) -> None:
        keeps_gil, frees_gil = ctypes.PyDLL(str(library)), ctypes.CDLL(str(library))
        # Dropping a recording drops tensors, some of which hold numpy's memory: under the GIL.
        self.begin, self.end = keeps_gil.qinfer_record, keeps_gil.qinfer_record_end
        self.free, self.size = keeps_gil.qinfer_recording_free, keeps_gil.qinfer_recording_size
        self.replay = frees_gil.qinfer_replay
        self.begin.restype, self.size.restype = ctypes.c_void_p, ctypes.c_int64
        self.begin.argtypes = [ctypes.c_bool]
        for function in (self.free, self.size):
            function.argtypes = [ctypes.c_void_p]
        self.replay.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]


class Recording(Generic[R]):
    """What ``call`` computed, and the native operators it ran, to be run again.

    Only native operators are recorded: what ``call`` computes by other means stays as it was, in
    every replay. ``result`` is overwritten by each.
    """

    def __init__(
        self, recorder: Recorder, call: Callable[[], R], *, is_deferred: bool = False
    ) -> None:
        """``is_deferred``: the operators are noted and not run, so ``result`` is what the first
        replay computes; nothing but native operators may look at it before.
        """
        handle = recorder.begin(is_deferred)
        self._close = weakref.finalize(self, recorder.free, handle)
        try:
            self.result = call()
        finally:
            recorder.end()
        self._handle, self._replay = handle, recorder.replay
        self.size: int = recorder.size(handle)
        """How many operators."""

    def replay(self) -> R:
        """Run them again, on what their inputs hold now."""
        self._replay(self._handle, 0, self.size, None)
        return self.result

    def replay_in_parts(self, part: int) -> R:
        """The same, ``part`` operators at a time: in between Python sees a Ctrl-C."""
        for first in range(0, self.size, part):
            self._replay(self._handle, first, min(first + part, self.size), None)
        return self.result

    def seconds(self) -> NDArray[np.float64]:
        """Run them again; what each took until all threads had done their share of it."""
        taken = np.empty(self.size)
        self._replay(self._handle, 0, self.size, taken.ctypes.data)
        return taken


class _Loaded:
    """The recorder of the operators in use, if they can be recorded."""

    recorder: Recorder | None = None


def set_recorder(recorder: Recorder | None) -> None:
    """Say how the operators that have just been put to use are recorded; None: they cannot be."""
    _Loaded.recorder = recorder


def recorder() -> Recorder | None:
    """How the operators in use are recorded, or None."""
    return _Loaded.recorder
