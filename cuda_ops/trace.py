"""Running a model once over symbols instead of numbers, which makes a static program of it.

Paddle's ``jit.to_static`` rewrites a forward's source code to the same end. That is not needed: a
model has no branch that depends on data, and computes with the table's operators alone, so its
weights are the tensors that reach an operator.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import paddle
from paddle import Tensor

from qinfer.core.types import CacheSpec, LayerCache, StepInput
from qinfer.cuda_ops.cuda import CUDA
from qinfer.cuda_ops.fused import Held
from qinfer.cuda_ops.linear import e4m3_codes
from qinfer.cuda_ops.table import TABLE, Operator, version_in_use

STEP = {
    "token_ids": ([-1], "int64"),
    "positions": ([-1], "int64"),
    "query_starts": ([-1], "int32"),
    "seq_lens": ([-1], "int32"),
    "slot_mapping": ([-1], "int64"),
    "block_tables": ([-1, -1], "int32"),
    "logit_rows": ([-1], "int64"),
}
"""Shape and dtype of each field of ``StepInput``; a size of -1 differs from step to step."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A program whose inputs are the fields of ``StepInput``, the cache and the parameters, by
    these names; its one output is the logits.
    """

    program: Any
    inputs: tuple[Any, ...]
    logits: Any
    parameters: Mapping[str, Tensor]


def trace(model: Callable[[StepInput, Sequence[LayerCache]], Any], cache: CacheSpec) -> Traced:
    """The program of a model with the operators that are in use.

    Every tensor an operator is given becomes a parameter, named after the operator and its
    argument. Raises whatever the model does, over symbols: it must not read tensors.
    """
    symbols = _Symbols()
    program = paddle.static.Program()
    with static_mode(), paddle.static.program_guard(program), _arguments(symbols.of):
        step = {name: paddle.static.data(name, *kind) for name, kind in STEP.items()}
        layers = [_cache(cache, layer) for layer in range(cache.num_layers)]
        logits = model(StepInput(**step), layers)
    entries = [tensor for layer in layers for tensor in cache_tensors(layer).values()]
    inputs = (*step.values(), *entries, *symbols.by_id.values())
    return Traced(program=program, inputs=inputs, logits=logits, parameters=symbols.parameters())


class _Symbols:
    """What stands for the tensors that operators are given."""

    def __init__(self) -> None:
        self.by_id: dict[int, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        # Paddle's operators can neither slice e4m3 numbers nor, in a program, take them for bits:
        # they get the bits.
        self.as_bits = version_in_use() != CUDA

    def of(self, value: Any, name: str) -> Any:
        """The symbols of a tensor, of several, or of those a layer shows; else the value."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.of(one, name) for one in value)
        if isinstance(held := getattr(value, "held", None), Held):
            parts = {part: self.of(getattr(held, part), f"{name}.{part}") for part in TENSORS}
            return _Shown(value, replace(held, **parts))
        if not isinstance(value, Tensor):
            return value
        if (key := id(value)) not in self.by_id:
            unique = f"{name}.{len(self.tensors)}"
            self.tensors[unique] = value
            dtype = paddle.int8 if self._is_cut(value) else value.dtype
            self.by_id[key] = paddle.static.data(unique, value.shape, dtype)
        return self.by_id[key]

    def parameters(self) -> dict[str, Tensor]:
        """Name -> tensor, as the program takes it."""
        return {
            name: e4m3_codes(tensor) if self._is_cut(tensor) else tensor
            for name, tensor in self.tensors.items()
        }

    def _is_cut(self, tensor: Tensor) -> bool:
        return self.as_bits and tensor.dtype == paddle.float8_e4m3fn


TENSORS = ("weight", "scale", "bias")
"""Fields of ``Held``."""


@dataclass(frozen=True)
class _Shown:
    """A layer over symbols."""

    layer: Callable[[Any], Any]
    held: Held

    def __call__(self, x: Any) -> Any:
        return self.layer(x)


def cache_name(layer: int, field: str) -> str:
    """What a program calls one tensor of a layer's cache."""
    return f"cache.{layer}.{field}"


def cache_tensors(layer: LayerCache) -> dict[str, Any]:
    """A layer's tensors by their fields' names; fields it has not are left out."""
    held = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def _cache(spec: CacheSpec, layer: int) -> LayerCache:
    slots = [-1, spec.block_size, spec.num_kv_heads]

    def data(field: str, shape: list[int], dtype: str) -> Any:
        return paddle.static.data(cache_name(layer, field), shape, dtype)

    keys, values = (data(n, [*slots, spec.head_dim], spec.dtype) for n in ("keys", "values"))
    made = LayerCache(keys=keys, values=values)
    if not spec.is_scaled:
        return made
    scales = slots if spec.scales is None else [spec.num_kv_heads]
    key_scales, value_scales = (data(n, scales, "float32") for n in ("key_scales", "value_scales"))
    return replace(made, key_scales=key_scales, value_scales=value_scales)


@contextmanager
def static_mode() -> Iterator[None]:
    """Paddle's calls make operators of a program instead of computing."""
    paddle.enable_static()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Paddle's own functions ask symbols for their place
            yield
    finally:
        paddle.disable_static()


@contextmanager
def _arguments(convert: Callable[[Any, str], Any]) -> Iterator[None]:
    """Let ``convert`` change every operator's arguments, given a name for each."""
    before = {entry: entry.run for entry in TABLE.values()}
    for entry in before:
        entry.run = _converting(entry, convert)
    try:
        yield
    finally:
        for entry, run in before.items():
            entry.run = run


def _converting(entry: Operator[..., object], convert: Callable[[Any, str], Any]) -> Any:
    run, signature = entry.run, inspect.signature(entry.versions["reference"])

    def call(*args: Any, **kwargs: Any) -> object:
        bound = signature.bind(*args, **kwargs)
        for argument, value in bound.arguments.items():
            bound.arguments[argument] = convert(value, f"{entry.name}.{argument}")
        return run(*bound.args, **bound.kwargs)

    return call
