"""Qwen's own FP8 checkpoints: e4m3 weights with a scale for each block of 128 x 128.

Format: quantization_config {"quant_method": "fp8", "weight_block_size": [128, 128],
"activation_scheme": "dynamic", "modules_to_not_convert": […]}; ``weight_scale_inv`` is what a block
is multiplied by. Without ``weight_block_size``, a scale for the tensor in ``weight_scale``, and in
``input_scale`` that of static activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qinfer.core.checkpoint.stored_arrays import need, read_floats
from qinfer.core.errors import Unsupported
from qinfer.core.protocols import StoredTensors
from qinfer.core.stored import StoredLinear, StoredWeights
from qinfer.core.types import Array, ModelConfig, PluginInfo, Scheme
from qinfer.plugins.quant.stored_format import Shapes, StoredFormat


class Fp8Block(StoredFormat):
    """e4m3 weights as ``quant_method`` "fp8" describes them."""

    info = PluginInfo(
        name="fp8-block",
        kind="quant",
        api="1.2",
        summary="reads Qwen's FP8 checkpoints (e4m3 in blocks)",
    )
    methods = ("fp8",)

    def find(
        self,
        config: ModelConfig,
        said: Mapping[str, Any],
        weights: Shapes,
        checkpoint: StoredTensors,
    ) -> StoredWeights:
        """Every weight that is e4m3; a checkpoint leaves some modules in 16 bits."""
        present = set(checkpoint.names())
        found = {
            name: _linear(said, name, shape, checkpoint)
            for name, shape in weights.items()
            if name in present and checkpoint.dtype(name) == "F8_E4M3"
        }
        return StoredWeights(linears=found)


def _linear(
    said: Mapping[str, Any], name: str, shape: tuple[int, int], checkpoint: StoredTensors
) -> StoredLinear:
    size, scheme = said.get("weight_block_size"), said.get("activation_scheme", "dynamic")
    square = isinstance(size, list) and len(size) == 2 and size[0] == size[1] and size[0] > 0
    if not (square or size is None) or scheme not in ("dynamic", "static"):
        raise Unsupported(
            f"config.json: FP8 weights in blocks of {size!r} with {scheme!r} activations",
            remedy="Take a checkpoint with square blocks, or an unquantised one with --quant fp8.",
        )
    if square and scheme == "static":
        raise Unsupported(
            "config.json: FP8 weights in blocks with static activations",
            remedy="Take an unquantised checkpoint with --quant fp8.",
        )
    need(checkpoint, name, ("F8_E4M3",), shape)
    module = name.removesuffix(".weight")
    if isinstance(size, list):
        return _in_blocks(module, shape, int(size[0]), checkpoint)
    return _whole(module, shape, scheme == "static", checkpoint)


def _in_blocks(
    module: str, shape: tuple[int, int], block: int, checkpoint: StoredTensors
) -> StoredLinear:
    tensors = (f"{module}.weight", f"{module}.weight_scale_inv")
    blocks = (-(-shape[0] // block), -(-shape[1] // block))

    def load() -> dict[str, Array]:
        scale = read_floats(checkpoint, tensors[1], blocks[0] * blocks[1]).reshape(blocks)
        return {"weight": np.array(checkpoint.read(tensors[0])), "scale": scale}

    return StoredLinear(
        scheme=Scheme(
            name="fp8",
            weight_dtype="float8_e4m3fn",
            weight_scale="block",
            input_dtype="float8_e4m3fn",
            input_scale="group",
            group_size=block,
        ),
        shape=shape,
        tensors=tensors,
        load=load,
    )


def _whole(
    module: str, shape: tuple[int, int], static: bool, checkpoint: StoredTensors
) -> StoredLinear:
    tensors = [f"{module}.weight", f"{module}.weight_scale"]
    tensors += [f"{module}.input_scale"] if static else []

    def load() -> dict[str, Array]:
        scale = read_floats(checkpoint, tensors[1], 1)
        arrays = {
            "weight": np.array(checkpoint.read(tensors[0])),
            "scale": np.full(shape[0], scale[0], np.float32),
        }
        if static:
            arrays["input_scale"] = read_floats(checkpoint, tensors[2], 1)
        return arrays

    return StoredLinear(
        scheme=Scheme(
            name="fp8",
            weight_dtype="float8_e4m3fn",
            weight_scale="channel",
            input_dtype="float8_e4m3fn",
            input_scale="tensor" if static else "token",
        ),
        shape=shape,
        tensors=tuple(tensors),
        load=load,
    )
