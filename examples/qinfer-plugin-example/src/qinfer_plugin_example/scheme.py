"""int8 weights with one scale for each block of 32 inputs of an output channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle

from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.specs import QuantPlugin, hookimpl
from qinfer.core.types import (
    Array,
    DeviceInfo,
    LinearSpec,
    ModelConfig,
    PluginInfo,
    QuantPlan,
    Scheme,
)
from qinfer.plugins.quant.none import build_plain, pack_plain, plain_scheme

BLOCK = 32
INT8 = Scheme(name="int8-blockwise", weight_dtype="int8", weight_scale="group", group_size=BLOCK)


class Int8Blockwise(QuantPlugin):
    """Weight-only int8 with finer scales than one per output channel."""

    info = PluginInfo(
        name="int8-blockwise",
        kind="quant",
        api="1.0",
        summary=f"int8 weights, one scale for {BLOCK} inputs of an output channel",
        aliases=("int8_block32",),
    )

    @hookimpl
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """int8 where blocks fit; head, router and experts keep the model's precision."""
        skipped = {}
        for spec in layers:
            if spec.experts or spec.role not in ("qkv", "o", "gate_up", "down"):
                skipped[spec.name] = "only attention and MLPs are quantised"
            elif spec.in_features % BLOCK:
                skipped[spec.name] = f"{spec.in_features} inputs are no multiple of {BLOCK}"
        plain = plain_scheme(config)
        by_layer = {spec.name: plain if spec.name in skipped else INT8 for spec in layers}
        return QuantPlan(by_layer=by_layer, skipped=skipped)

    @hookimpl
    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> Mapping[str, Array]:
        """weight [in, out] int8 and scale [in / 32, out] float32, from a numpy [out, in]."""
        if scheme != INT8:
            return pack_plain(spec, scheme, weight)
        blocks = weight.astype(np.float32).reshape(len(weight), -1, BLOCK)
        scale = np.abs(blocks).max(axis=2, keepdims=True) / 127
        packed = np.rint(blocks / np.where(scale > 0, scale, 1)).astype(np.int8)
        return {
            "weight": np.ascontiguousarray(packed.reshape(weight.shape).T),
            "scale": np.ascontiguousarray(scale[:, :, 0].T),
        }

    @hookimpl
    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer:
        """A product with int8 weights, or a plain one where the plan left the layer out."""
        return Int8Linear(params) if scheme == INT8 else build_plain(spec, scheme, params)


class Int8Linear:
    """``x (W * scale) + b``: the weight is made float again for every call."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.weight, self.scale, self.bias = params["weight"], params["scale"], params.get("bias")

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        blocks, width = self.scale.shape
        weight = self.weight.astype(x.dtype).reshape([blocks, BLOCK, width])
        weight = (weight * self.scale.unsqueeze(1)).reshape([-1, width])
        product = paddle.matmul(x, weight)
        return product if self.bias is None else product + self.bias
