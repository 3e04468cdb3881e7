"""Weight-only int8: symmetric, one scale per output channel, quantised while loading."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qinfer.core.arrays import converted
from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.types import Array, LinearSpec, PluginInfo, Scheme
from qinfer.plugins.quant.channel_layers import int8_experts, int8_linear
from qinfer.plugins.quant.decoder import DecoderScheme


class WInt8(DecoderScheme):
    """int8 weights, activations in the compute dtype; what PaddleNLP calls weight_only_int8."""

    info = PluginInfo(
        name="wint8",
        kind="quant",
        api="1.0",
        summary="int8 weights, one scale per output channel",
        aliases=("weight_only_int8",),
    )
    scheme = Scheme(name="wint8", weight_dtype="int8", weight_scale="channel")
    as_device = True

    def quantise(self, weight: Array) -> dict[str, Array]:
        """Weight [out, in] int8 and scale [out] float32."""
        return pack_int8(weight)

    def layer(self, spec: LinearSpec, params: Mapping[str, Array]) -> Layer | ExpertLayer:
        """A product with int8 weights."""
        return int8_experts(spec, params) if spec.experts else int8_linear(params)


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
