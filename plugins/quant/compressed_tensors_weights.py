"""One weight of a checkpoint in the compressed-tensors format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from qinfer.core.checkpoint.stored_arrays import (
    bad,
    by_group,
    need,
    read_floats,
    signed,
    unpack,
)
from qinfer.core.errors import Unsupported
from qinfer.core.protocols import StoredTensors
from qinfer.core.stored import StoredLinear
from qinfer.core.types import Array, Scheme


def read_linear(
    group: Mapping[str, Any], module: str, shape: tuple[int, int], checkpoint: StoredTensors
) -> StoredLinear:
    """The weight of ``module`` [out, in], held as ``group`` of quantization_config says. Raises
    Unsupported for what nothing computes with, BadCheckpoint for a tensor that is wrong.
    """
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping) or not isinstance(inputs or {}, Mapping):
        raise Unsupported(
            f"{module}: a group of quantization_config says nothing of its weights",
            remedy="Quantise the weights of every group, or ignore its layers.",
        )
    bits, kind = weights.get("num_bits"), weights.get("type")
    size = _group_size(weights, shape, module)
    if kind == "int" and bits in (4, 8) and weights.get("strategy") in STRATEGIES:
        return _integers(int(bits), size, weights, inputs, module, shape, checkpoint)
    if kind == "float" and bits == 8 and weights.get("strategy") in STRATEGIES:
        return _floats(weights, inputs, module, shape, checkpoint)
    raise _unsupported(module, weights, inputs)


STRATEGIES = ("tensor", "channel", "group", "block")


def _group_size(weights: Mapping[str, Any], shape: tuple[int, int], module: str) -> int:
    if weights.get("strategy") != "group":
        return shape[1]
    size = weights.get("group_size")
    if not isinstance(size, int) or size < 1 or shape[1] % size:
        raise Unsupported(
            f"{module}: its {shape[1]} inputs make no groups of {size!r}",
            remedy="Quantise the model with a group size that divides them.",
        )
    return size


def _integers(
    bits: int,
    size: int,
    weights: Mapping[str, Any],
    inputs: Mapping[str, Any] | None,
    module: str,
    shape: tuple[int, int],
    checkpoint: StoredTensors,
) -> StoredLinear:
    """int8 and int4 weights, in bytes of their own or packed."""
    packed = f"{module}.weight_packed" in checkpoint.names()
    grouped = bits == 4 or size != shape[1] or not weights.get("symmetric", True)
    input_scale = _input_scale(inputs, "int", module, weights)
    if grouped and input_scale != "none":
        raise _unsupported(module, weights, inputs)
    plain = input_scale == "none"
    scheme = Scheme(
        name=f"wint{bits}" if plain else "a8w8",
        weight_dtype=f"int{bits}",
        weight_scale="group" if grouped else "channel",
        input_dtype="" if plain else "int8",
        input_scale=input_scale,
        group_size=size if grouped else 0,
    )
    names = [f"{module}.weight_packed" if packed else f"{module}.weight", f"{module}.weight_scale"]
    for more in ("weight_shape", "weight_zero_point", "weight_g_idx", "input_scale"):
        if f"{module}.{more}" in checkpoint.names():
            names.append(f"{module}.{more}")
    words = -(-shape[1] // (32 // bits))
    if packed:
        need(checkpoint, names[0], ("I32",), (shape[0], words))
    else:
        need(checkpoint, names[0], ("I8",), shape)

    def load() -> dict[str, Array]:
        stored = checkpoint.read(names[0])
        codes = signed(unpack(stored, bits, shape[1]), bits) if packed else np.array(stored)
        scale = _weight_scale(checkpoint, module, shape[0], shape[1] // size, weights)
        arrays: dict[str, Array] = {"weight": codes, "scale": scale if grouped else scale[:, 0]}
        if not weights.get("symmetric", True):
            arrays["zero"] = _zero_points(checkpoint, module, bits, scale.shape, packed)
        order = _order(checkpoint, module, size)
        if order is not None:
            arrays |= {"weight": np.ascontiguousarray(codes[:, order]), "order": order}
        if input_scale == "tensor":
            arrays["input_scale"] = read_floats(checkpoint, f"{module}.input_scale", 1)
        return arrays

    return StoredLinear(scheme=scheme, shape=shape, tensors=tuple(names), load=load)


def _weight_scale(
    checkpoint: StoredTensors, module: str, out: int, groups: int, weights: Mapping[str, Any]
) -> Array:
    """The scales as [out, groups]; one for the whole tensor is repeated."""
    name = f"{module}.weight_scale"
    if weights.get("strategy") == "tensor":
        return np.full((out, 1), read_floats(checkpoint, name, 1)[0], np.float32)
    return read_floats(checkpoint, name, out * groups).reshape(out, groups)


def _zero_points(
    checkpoint: StoredTensors, module: str, bits: int, shape: tuple[int, int], packed: bool
) -> Array:
    """[out, groups] in codes around 0; packed ones lie below each other in a word."""
    name = f"{module}.weight_zero_point"
    if not packed:
        need(checkpoint, name, ("I8",), shape)
        return checkpoint.read(name).astype(np.float32)
    need(checkpoint, name, ("I32",), (-(-shape[0] // (32 // bits)), shape[1]))
    codes = unpack(np.ascontiguousarray(checkpoint.read(name).T), bits, shape[0])
    return np.ascontiguousarray(signed(codes, bits).T.astype(np.float32))


def _order(checkpoint: StoredTensors, module: str, size: int) -> Array | None:
    name = f"{module}.weight_g_idx"
    if name not in checkpoint.names():
        return None
    groups = checkpoint.read(name)
    if (groups < 0).all():  # not used
        return None
    try:
        return by_group(groups, size)
    except ValueError as error:
        raise bad(checkpoint, name, f"makes no groups of {size} inputs ({error})") from None


def _floats(
    weights: Mapping[str, Any],
    inputs: Mapping[str, Any] | None,
    module: str,
    shape: tuple[int, int],
    checkpoint: StoredTensors,
) -> StoredLinear:
    """e4m3 weights with a scale for the tensor, each channel or each block."""
    input_scale = _input_scale(inputs, "float", module, weights)
    by_block = weights.get("strategy") == "block"
    if weights.get("strategy") == "group" or by_block != (input_scale == "group"):
        raise _unsupported(module, weights, inputs)
    if input_scale == "none":
        raise _unsupported(module, weights, inputs)
    structure = weights.get("block_structure") or [0, 0]
    if by_block and (len(structure) != 2 or structure[0] != structure[1] or structure[0] < 1):
        raise _unsupported(module, weights, inputs)
    block = int(structure[0]) if by_block else 0
    static = input_scale == "tensor"
    names = [f"{module}.weight", f"{module}.weight_scale"]
    names += [f"{module}.input_scale"] if static else []
    need(checkpoint, names[0], ("F8_E4M3",), shape)
    scheme = Scheme(
        name="fp8",
        weight_dtype="float8_e4m3fn",
        weight_scale="block" if by_block else "channel",
        input_dtype="float8_e4m3fn",
        input_scale=input_scale,
        group_size=block,
    )
    load = partial(_load_floats, checkpoint, module, weights, shape, block, static)
    return StoredLinear(scheme=scheme, shape=shape, tensors=tuple(names), load=load)


def _load_floats(
    checkpoint: StoredTensors,
    module: str,
    weights: Mapping[str, Any],
    shape: tuple[int, int],
    block: int,
    static: bool,
) -> dict[str, Array]:
    arrays: dict[str, Array] = {"weight": np.array(checkpoint.read(f"{module}.weight"))}
    if block:
        blocks = (-(-shape[0] // block), -(-shape[1] // block))
        scale = read_floats(checkpoint, f"{module}.weight_scale", blocks[0] * blocks[1])
        arrays["scale"] = scale.reshape(blocks)
    else:
        arrays["scale"] = _weight_scale(checkpoint, module, shape[0], 1, weights)[:, 0].copy()
    if static:
        arrays["input_scale"] = read_floats(checkpoint, f"{module}.input_scale", 1)
    return arrays


def _input_scale(
    inputs: Mapping[str, Any] | None, kind: str, module: str, weights: Mapping[str, Any]
) -> str:
    """How activations are scaled: "none", "token", "tensor" (static) or "group"."""
    if not inputs:
        return "none"
    same = inputs.get("num_bits") == 8 and inputs.get("type") == kind
    if same and inputs.get("symmetric", True):
        dynamic, strategy = inputs.get("dynamic"), inputs.get("strategy")
        # A scale for the whole batch on the fly would make answers depend on the batch: each
        # token's own is what it approximates.
        if dynamic is True and strategy in ("token", "tensor"):
            return "token"
        if dynamic is True and strategy == "group":
            return "group"
        if not dynamic and strategy == "tensor":
            return "tensor"
    raise _unsupported(module, weights, inputs)


def _unsupported(module: str, weights: Mapping[str, Any], inputs: Any) -> Unsupported:
    def words(said: Any) -> str:
        if not isinstance(said, Mapping):
            return "none"
        keys = ("num_bits", "type", "strategy", "symmetric", "dynamic")
        return ", ".join(f"{key} {said.get(key)}" for key in keys)

    return Unsupported(
        f"{module}: nothing computes with weights of {words(weights)} and activations of "
        f"{words(inputs)}",
        remedy="Take a checkpoint quantised as W8A8 (int8 or e4m3), W8A16 or W4A16, or an "
        "unquantised one with --quant.",
    )
