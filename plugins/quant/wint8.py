"""Weight-only int8: symmetric, one scale per output channel, quantised while loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qinfer.core.arrays import converted
from qinfer.core.protocols import Layer
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
from qinfer.cuda_ops import ops
from qinfer.plugins.quant.none import PlainLinear, pack_plain, plain_scheme

HEAD_STAYS = "the vocabulary head keeps the model's precision"
INT8 = Scheme(name="wint8", weight_dtype="int8", weight_scale="channel")


class WInt8(QuantPlugin):
    """int8 weights, activations in the compute dtype; what PaddleNLP calls weight_only_int8."""

    info = PluginInfo(
        name="wint8",
        kind="quant",
        api="1.0",
        summary="int8 weights, one scale per output channel",
        aliases=("weight_only_int8",),
    )

    @hookimpl
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """int8 for every linear of the decoder layers."""
        return quantise_decoder(config, layers, INT8)

    @hookimpl
    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> dict[str, Array]:
        """Weight [in, out] int8 and scale [out] float32."""
        return pack_int8(weight) if scheme == INT8 else pack_plain(scheme, weight)

    @hookimpl
    def build_linear(self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> Layer:
        """An int8 product, or a plain one where the plan left the layer out."""
        return Int8Linear(params) if scheme == INT8 else PlainLinear(spec, scheme, params)


class Int8Linear:
    """``(x W) * scale + b`` with W in int8."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange(params["weight"], "float32")
        self.scale, self.bias = params["scale"], params.get("bias")
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias)

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear_int8(x, self.weight, self.scale, self.bias)


def quantise_decoder(
    config: ModelConfig, layers: Sequence[LinearSpec], scheme: Scheme
) -> QuantPlan:
    """``scheme`` for every linear but the vocabulary head, which PaddleNLP and vLLM leave too."""
    heads = [spec.name for spec in layers if spec.role == "lm_head"]
    by_layer = {spec.name: scheme for spec in layers} | dict.fromkeys(heads, plain_scheme(config))
    return QuantPlan(by_layer=by_layer, skipped=dict.fromkeys(heads, HEAD_STAYS))


def pack_int8(weight: Array) -> dict[str, Array]:
    """``q = round_half_away(127 w / absmax)`` per output channel, scale = absmax / 127.

    The formula of Paddle's weight_quantize (weight_only_int8). A channel of zeros gets scale 0.
    """
    scale = np.empty(weight.shape[0], np.float32)

    def convert(rows: Array, start: int) -> Array:
        values = rows.astype(np.float32)
        absmax = np.abs(values).max(axis=1)
        scale[start : start + len(absmax)] = absmax / 127
        scaled = values * (127 / np.where(absmax > 0, absmax, 1))[:, None]
        return np.clip(np.trunc(scaled + np.copysign(np.float32(0.5), scaled)), -127, 127)

    return {"weight": converted(weight, "int8", convert), "scale": scale}
