"""The device a run computes on: choosing it, its memory, and placing arrays there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.machine import cpu_features, cpu_name, is_amd, memory, usable_cores
from qinfer.core.openmp import provide_openmp
from qinfer.core.types import Array, DeviceInfo

_CARRIERS: Mapping[str, type[np.generic]] = {
    ml_dtypes.bfloat16.__name__: np.int16,
    ml_dtypes.float8_e4m3fn.__name__: np.int8,
}
"""Numpy types that carry the bits of those Paddle knows and numpy does not."""


def import_paddle(threads: int = 0) -> Any:
    """Import Paddle with ``threads`` compute threads (0: one per usable processor).

    Raises Unsupported when it is not installed or does not load. The number of threads holds for
    the whole process, so the last call decides.
    """
    prepare_paddle()
    try:
        with warnings.catch_warnings():
            # Paddle advises on the ccache compiler cache at every import.
            warnings.simplefilter("ignore")
            import paddle
    except ImportError as error:
        raise Unsupported(
            f"PaddlePaddle cannot be imported: {error}",
            remedy="Run pip install 'qinfer-paddle[cpu]' (in a clone: pip install '.[cpu]').",
        ) from error
    paddle.disable_signal_handler()  # else it prints a C++ trace on Ctrl-C
    # Paddle computes with one thread by default, and with OMP_NUM_THREADS it prints a warning.
    paddle.base.core.set_num_threads(threads or usable_cores())
    return paddle


def prepare_paddle() -> None:
    """What has to be done before Paddle is imported for the first time, by whomever.

    Raises Unsupported where Paddle could not load.
    """
    _wake_mkl()
    provide_openmp()


def _wake_mkl() -> None:
    """Let Paddle's bundled MKL use what an AMD processor has; it must be told before it loads.

    The wheel links MKL 2019, which runs its slowest code on processors that aren't Intel's. Its own
    switch chooses the AVX-512 (7) or AVX2 (5) code instead: on a Zen 4 with two threads, float32
    products went from 86 to 428 GFLOP/s.
    """
    features = cpu_features()
    if is_amd() and "avx2" in features:
        choice = "7" if "avx512bw" in features else "5"
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", choice)


def open_device(name: str) -> DeviceInfo:
    """The device called ``auto``, ``cpu`` or ``gpu[:N]``, with its memory as it is now."""
    kind = name.partition(":")[0]
    if kind not in ("auto", "cpu", "gpu"):
        raise UsageError(f"unknown device {name!r}", remedy="Use auto, cpu, gpu or gpu:N.")
    if kind == "gpu":
        raise Unsupported(
            "this version of qinfer computes on the CPU only; GPU operators are in the making",
            remedy="Use --device cpu (or auto).",
        )
    total, free = memory()
    return DeviceInfo(
        kind="cpu",
        name=cpu_name(),
        memory_total=total,
        memory_free=free,
        features=frozenset(cpu_features()),
    )


def place(array: NDArray[Any], dtype: str = "") -> Array:
    """A numpy array as a Paddle tensor, converted to ``dtype`` if given.

    A writable contiguous array of a type both know is not copied: tensor and array share memory.
    """
    import paddle

    carrier = _CARRIERS.get(array.dtype.name)
    raw = (
        np.ascontiguousarray(array)
        if carrier is None
        else np.ascontiguousarray(array).view(carrier)
    )
    tensor = paddle.from_dlpack(raw if raw.flags.writeable else raw.copy())
    if carrier is not None:
        tensor = tensor.view(array.dtype.name)
    return tensor.astype(dtype) if dtype and dtype != array.dtype.name else tensor
