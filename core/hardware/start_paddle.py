"""Importing Paddle, and what has to be done before: for AMD's processors, OpenMP and cards."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.hardware.machine import cpu_features, is_amd, usable_cores
from qinfer.core.hardware.nvidia import wake
from qinfer.core.hardware.openmp import provide_openmp
from qinfer.core.progress import TerminalProgress

GPU_PLUGIN = "CUSTOM_DEVICE_ROOT"
"""Environment variable: the folder Paddle loads device plugins from as it is imported."""

MOST_THREADS = 1024
"""Where the system refuses a thread, OpenMP ends the process."""

GPU_TYPE = "nv"
"""What the plugin's devices are called in Paddle, whose CPU build knows no "gpu"."""


def import_paddle(threads: int = 0, device: str = "cpu") -> Any:
    """Import Paddle with ``threads`` compute threads (0: one per usable processor), to compute on
    ``device``: "cpu" or "gpu:N".

    Raises Unsupported when it is not installed or does not load, and UsageError for more threads
    than MOST_THREADS. Threads and device hold for the whole process, so the last call decides.
    """
    if threads > MOST_THREADS:
        raise UsageError(
            f"threads must be at most {MOST_THREADS:,}, not {threads:,}",
            remedy="More than there are processors make nothing faster: leave it out for one each.",
        )
    prepare_paddle(device)
    if device.startswith("gpu") and "paddle" not in sys.modules:
        wake(int(device.partition(":")[2] or 0))
    try:
        with _interrupts_held(), warnings.catch_warnings():
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


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A Ctrl-C within it is a KeyboardInterrupt at its end. In the midst of Paddle's own start it
    would be swallowed, or look like an installation that does not load.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()  # others may not, and get none
    if before is not signal.default_int_handler or not is_main:
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            raise KeyboardInterrupt


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
            'qinfer.core.hardware.start_paddle.prepare_paddle("gpu") first.',
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
