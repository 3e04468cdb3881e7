"""The device a run computes on: choosing it, its memory, and placing arrays there."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.hardware.machine import (
    cpu_features,
    cpu_name,
    cuda_compiler,
    is_amd,
    memory,
    usable_cores,
)
from qinfer.core.hardware.nvidia import Card, cards, wake
from qinfer.core.hardware.openmp import provide_openmp
from qinfer.core.progress import TerminalProgress
from qinfer.core.types import Array, DeviceInfo

_CARRIERS: Mapping[str, type[np.generic]] = {
    ml_dtypes.bfloat16.__name__: np.int16,
    ml_dtypes.float8_e4m3fn.__name__: np.int8,
}
"""Numpy types that carry the bits of those Paddle knows and numpy does not."""


def import_paddle(threads: int = 0, device: str = "cpu") -> Any:
    """Import Paddle with ``threads`` compute threads (0: one per usable processor), to compute on
    ``device``: "cpu" or "gpu:N".

    Raises Unsupported when it is not installed or does not load. Threads and device hold for the
    whole process, so the last call decides.
    """
    prepare_paddle(device)
    if device.startswith("gpu") and "paddle" not in sys.modules:
        wake(int(device.partition(":")[2] or 0))
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
    _choose_device(paddle, device)
    return paddle


def prepare_paddle(device: str = "cpu") -> None:
    """What has to be done before Paddle is imported for the first time, by whomever.

    For a GPU that is building the plugin through which Paddle reaches it, and saying where it is.
    Raises Unsupported where Paddle could not load, or not reach the device.
    """
    _wake_mkl()
    provide_openmp()
    if device.partition(":")[0] != "gpu" or GPU_PLUGIN in os.environ:
        return
    if "paddle" in sys.modules:
        raise Unsupported(
            "Paddle was imported before qinfer could tell it of the GPU",
            remedy="Load the model before anything imports paddle, or call "
            'qinfer.core.hardware.device.prepare_paddle("gpu") first.',
        )
    os.environ[GPU_PLUGIN] = gpu_builder().device_folder(TerminalProgress().note)
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle tells of each library it opens
    # The cards are numbered as the driver's tools show them.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def gpu_builder() -> Any:
    """The module that builds what a GPU needs: it has ``device_folder(progress)``, the folder with
    the plugin for Paddle, and ``plan_operators(architectures)``, an ``OperatorBuild``.
    """
    for found in entry_points(group="qinfer.devices", name="gpu"):
        return found.load()
    raise Unsupported(
        "this installation of qinfer does not say how to build the GPU operators",
        remedy="Install it again (in a clone: pip install -e .).",
    )


GPU_PLUGIN = "CUSTOM_DEVICE_ROOT"
"""Environment variable: the folder Paddle loads device plugins from as it is imported."""

GPU_TYPE = "nv"
"""What the plugin's devices are called in Paddle, whose CPU build knows no "gpu"."""


def _choose_device(paddle: Any, device: str) -> None:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        paddle.set_device("cpu")
        return
    try:
        name = "gpu" if paddle.is_compiled_with_cuda() else GPU_TYPE
        paddle.set_device(f"{name}:{index or 0}")
    except (RuntimeError, ValueError) as error:
        raise Unsupported(
            f"Paddle cannot use the GPU: {error}",
            remedy="Run qinfer doctor, or use --device cpu.",
        ) from error


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
    """The device called ``auto``, ``cpu`` or ``gpu[:N]``, with its memory as it is now.

    ``auto`` is the first card where there is one and a compiler for it, else the processor.
    """
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "gpu") or (number and not (kind == "gpu" and number.isdigit())):
        raise UsageError(f"unknown device {name!r}", remedy="Use auto, cpu, gpu or gpu:N.")
    found = [] if kind == "cpu" else cards()
    if kind == "gpu" or (found and cuda_compiler()):
        return _open_card(found, int(number or 0))
    total, free = memory()
    return DeviceInfo(
        kind="cpu",
        name=cpu_name(),
        memory_total=total,
        memory_free=free,
        features=frozenset(cpu_features()),
    )


def _open_card(found: list[Card], index: int) -> DeviceInfo:
    if not found:
        raise Unsupported(
            "there is no NVIDIA card here, or no driver for it",
            remedy="Check with nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu.",
        )
    if index >= len(found):
        raise UsageError(
            f"there is no gpu:{index}: {len(found)} of them can be used, from gpu:0 on",
            remedy="See nvidia-smi and CUDA_VISIBLE_DEVICES.",
        )
    card = found[index]
    return DeviceInfo(
        kind="gpu",
        index=index,
        name=card.name,
        memory_total=card.memory_total,
        memory_free=card.memory_free,
        features=frozenset({f"sm_{card.capability[0]}{card.capability[1]}"}),
        compute_dtypes=("bfloat16", "float16"),
    )


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


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system each time.

    Paddle allocates every temporary with malloc. Above 128 KiB each becomes a fresh mapping whose
    pages the kernel zeroes again on first touch: converting a 7 MB int8 weight took 1.7 ms per
    million elements that way and takes 0.09 ms with this setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, one_gib = -1, -3, 1 << 30
    libc.mallopt(mmap_threshold, one_gib)
    libc.mallopt(trim_threshold, one_gib)
