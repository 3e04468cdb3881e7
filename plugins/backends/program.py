"""A model as a Paddle program with its parameters in a mapped file: writing it and running it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import paddle
from numpy.typing import NDArray
from paddle import Tensor, inference

from qinfer.core.arrays import numpy_dtype
from qinfer.core.checkpoint.safetensors_file import map_file
from qinfer.core.checkpoint.write import ALIGNED, Pending, write_tensors
from qinfer.core.errors import BadCheckpoint, QinferError, Unsupported
from qinfer.core.hardware.machine import usable_cores
from qinfer.core.hardware.place import place
from qinfer.core.hardware.start_paddle import GPU_TYPE
from qinfer.core.protocols import Model
from qinfer.core.types import CacheSpec, LayerCache, RunConfig, StepInput
from qinfer.cuda_ops.trace import cache_name, cache_tensors, static_mode, trace

PROGRAM, PARAMETERS = "program.json", "parameters.safetensors"


def save(model: Model, cache: CacheSpec, folder: Path) -> None:
    """Write the model's program and, one tensor at a time, its parameters.

    They are inputs of the program, as they are then used where they are mapped: Paddle's own
    parameter files are read into memory. Raises Unsupported for a model that cannot be traced.
    """
    try:
        traced = trace(model, cache)
    except QinferError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise Unsupported(
            f"the model cannot be exported: {type(error).__name__}: {said}",
            remedy="A model and its scheme's layers must compute with the operators of "
            "qinfer.cuda_ops.ops alone and read no tensor's values; --backend dynamic runs others.",
        ) from error
    with static_mode():
        paddle.static.save_inference_model(
            str(folder / Path(PROGRAM).stem),
            list(traced.inputs),
            [traced.logits],
            paddle.static.Executor(paddle.CPUPlace()),
            program=traced.program,
            skip_prune_program=True,  # writing to the cache is the result of some operators
        )
    pending = [_pending(name, tensor) for name, tensor in traced.parameters.items()]
    # Those that keep the next one aligned first.
    write_tensors(folder / PARAMETERS, sorted(pending, key=lambda one: one.nbytes % ALIGNED != 0))
    if all(tensor.place.is_cpu_place() for tensor in traced.parameters.values()):
        _leave_to_the_disk(folder / PARAMETERS)  # it will be mapped, not copied to a card


def _leave_to_the_disk(path: Path) -> None:
    """Let the system forget the file's pages: those of a file that was read can be mapped as huge
    ones, those of one that was just written mostly not.
    """
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class StaticModel:
    """A saved program, called as the model it was."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        """Map the parameters and load the program. Raises BadCheckpoint if Paddle cannot."""
        self._threads = run.threads or usable_cores()
        self._predictor = _predictor(folder / PROGRAM, run, self._threads)
        self._names = frozenset(self._predictor.get_input_names())
        # A processor computes where they are mapped, and Paddle takes no read-only memory.
        arrays = map_file(folder / PARAMETERS, writable=run.device.startswith("cpu"))
        self._parameters = [
            _named(place(array), name) for name, array in arrays.items() if name in self._names
        ]
        self._cache: Sequence[LayerCache] = ()
        self._cache_inputs: list[Tensor] = []

    def __call__(self, batch: StepInput, cache: Sequence[LayerCache]) -> Tensor:
        """Write the new keys and values in place and return logits [R, vocab_size] float32."""
        if cache is not self._cache:
            self._cache, self._cache_inputs = cache, self._named_cache(cache)
        step = [
            _named(getattr(batch, field.name), field.name)
            for field in fields(batch)
            if field.name in self._names
        ]
        logits: Tensor = self._predictor.run([*step, *self._cache_inputs, *self._parameters])[0]
        # Paddle leaves one thread to whatever comes next, such as the replay of a step.
        paddle.base.core.set_num_threads(self._threads)
        return logits

    def _named_cache(self, cache: Sequence[LayerCache]) -> list[Tensor]:
        return [
            _named(tensor, name)
            for number, layer in enumerate(cache)
            for field, tensor in cache_tensors(layer).items()
            if (name := cache_name(number, field)) in self._names
        ]


def _predictor(path: Path, run: RunConfig, threads: int) -> Any:
    config = inference.Config(str(path), "")
    config.disable_glog_info()
    # As it was traced: every operator, in this order, gives the same bits as in dynamic mode.
    config.switch_ir_optim(False)
    config.disable_mkldnn()
    kind, _, index = run.device.partition(":")
    if kind == "cpu":
        config.set_cpu_math_library_num_threads(threads)
    elif paddle.is_compiled_with_cuda():
        config.enable_use_gpu(1, int(index or 0))
    else:
        config.enable_custom_device(GPU_TYPE, int(index or 0))
    try:
        return inference.create_predictor(config)
    except (RuntimeError, ValueError, NotImplementedError, OSError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise BadCheckpoint(
            f"{path} cannot be loaded by Paddle {paddle.__version__}: {first:.300}",
            remedy="Export the checkpoint again with this version.",
        ) from error


def _named(tensor: Tensor, name: str) -> Tensor:
    """The tensor, called what the program calls it: inputs are found by their names."""
    tensor.name = name
    return tensor


def _pending(name: str, tensor: Tensor) -> Pending:
    dtype = str(tensor.dtype).removeprefix("paddle.")

    def make() -> NDArray[Any]:
        held: NDArray[Any] = tensor.numpy()  # types numpy does not know as integers
        return held.view(numpy_dtype(dtype))

    return Pending(name=name, shape=tuple(tensor.shape), make=make, dtype=dtype)
