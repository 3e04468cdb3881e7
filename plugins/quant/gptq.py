"""Checkpoints written by GPTQ tools (AutoGPTQ, GPTQModel), also with act-order.

Format: for each linear ``qweight`` int32 [in * bits / 32, out], packed along the inputs, lowest
bits first; ``qzeros`` int32 [groups, out * bits / 32] packed along the outputs; ``scales``
[groups, out]; ``g_idx`` int32 [in]. Version 1, which is what these tools write unless config.json's
``checkpoint_format`` says "gptq_v2", stores zero points less one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qinfer.core.checkpoint.stored_arrays import bad, by_group, need, read_floats, signed, unpack
from qinfer.core.errors import Unsupported
from qinfer.core.protocols import StoredTensors
from qinfer.core.stored import StoredLinear, StoredWeights
from qinfer.core.types import Array, ModelConfig, PluginInfo, Scheme
from qinfer.plugins.quant.stored_format import Shapes, StoredFormat


class Gptq(StoredFormat):
    """4- and 8-bit weights in groups, symmetric or not, with or without act-order."""

    info = PluginInfo(
        name="gptq",
        kind="quant",
        api="1.2",
        summary="reads checkpoints of AutoGPTQ and GPTQModel",
    )
    methods = ("gptq",)

    def find(
        self,
        config: ModelConfig,
        said: Mapping[str, Any],
        weights: Shapes,
        checkpoint: StoredTensors,
    ) -> StoredWeights:
        """Every weight there is a ``qweight`` of."""
        bits, group, form = said.get("bits"), said.get("group_size"), said.get("checkpoint_format")
        if bits not in (4, 8) or not isinstance(group, int) or form not in (None, *FORMATS):
            raise Unsupported(
                f"config.json: GPTQ with {bits!r} bits, groups of {group!r}, format {form!r}",
                remedy="Take a checkpoint of 4 or 8 bits in the format gptq or gptq_v2.",
            )
        if said.get("dynamic"):
            raise Unsupported(
                "config.json: GPTQ with other settings for some layers (dynamic)",
                remedy="Take a checkpoint that is quantised alike throughout.",
            )
        offset = 0 if form == "gptq_v2" else 1
        present = set(checkpoint.names())
        linears: dict[str, StoredLinear] = {}
        for name, shape in weights.items():
            module = name.removesuffix(".weight")
            if f"{module}.qweight" in present:
                linears[name] = _linear(module, shape, bits, group, offset, checkpoint)
        # Zero biases are written for linears that have none.
        unused = [f"{name.removesuffix('.weight')}.bias" for name in linears]
        return StoredWeights(
            linears=linears, unused=tuple(name for name in unused if _is_zero(checkpoint, name))
        )


FORMATS = ("gptq", "gptq_v2")


def _is_zero(checkpoint: StoredTensors, name: str) -> bool:
    return name in checkpoint.names() and not np.any(checkpoint.read(name))


def _linear(
    module: str,
    shape: tuple[int, int],
    bits: int,
    group: int,
    offset: int,
    checkpoint: StoredTensors,
) -> StoredLinear:
    out, inputs = shape
    size = inputs if group == -1 else group
    per_word = 32 // bits
    if size < 1 or inputs % size or inputs % per_word or out % per_word:
        raise Unsupported(
            f"{module}: {inputs} inputs and {out} outputs make no groups of {size} and words of "
            f"{per_word}",
            remedy="Quantise the model with a group size that divides its layers.",
        )
    groups = inputs // size
    need(checkpoint, f"{module}.qweight", ("I32",), (inputs // per_word, out))
    need(checkpoint, f"{module}.qzeros", ("I32",), (groups, out // per_word))
    names = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]
    if f"{module}.g_idx" in checkpoint.names():
        names.append(f"{module}.g_idx")

    def load() -> dict[str, Array]:
        words = np.ascontiguousarray(checkpoint.read(names[0]).T)
        codes = signed(unpack(words, bits, inputs), bits)
        scale = read_floats(checkpoint, names[2], groups * out).reshape(groups, out)
        zeros = unpack(np.ascontiguousarray(checkpoint.read(names[1])), bits, out)
        arrays: dict[str, Array] = {"weight": codes, "scale": np.ascontiguousarray(scale.T)}
        around = (zeros.astype(np.int16) + offset) % (1 << bits) - (1 << (bits - 1))
        if around.any():
            arrays["zero"] = np.ascontiguousarray(around.T.astype(np.float32))
        if len(names) > 3:
            need(checkpoint, names[3], ("I32",), (inputs,))
            order = _order(checkpoint, names[3], size)
            if order is not None:
                arrays |= {"weight": np.ascontiguousarray(codes[:, order]), "order": order}
        return arrays

    scheme = Scheme(
        name=f"wint{bits}", weight_dtype=f"int{bits}", weight_scale="group", group_size=size
    )
    return StoredLinear(scheme=scheme, shape=shape, tensors=tuple(names), load=load)


def _order(checkpoint: StoredTensors, name: str, size: int) -> Array | None:
    try:
        return by_group(checkpoint.read(name), size)
    except ValueError as error:
        raise bad(checkpoint, name, f"makes no groups of {size} inputs ({error})") from None
