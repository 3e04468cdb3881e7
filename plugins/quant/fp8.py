"""FP8 (e4m3): weights scaled per output channel, activations per token on the fly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
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
from qinfer.plugins.quant.none import PlainLinear, pack_plain
from qinfer.plugins.quant.wint8 import quantise_decoder

E4M3_MAX = 448.0
FP8 = Scheme(
    name="fp8",
    weight_dtype="float8_e4m3fn",
    weight_scale="channel",
    input_dtype="float8_e4m3fn",
    input_scale="token",
)


class Fp8(QuantPlugin):
    """float8_e4m3fn on both sides of the product; PaddleNLP's a8w8_fp8 without calibration."""

    info = PluginInfo(
        name="fp8",
        kind="quant",
        api="1.0",
        summary="e4m3 weights per channel, e4m3 activations per token",
        aliases=("a8w8_fp8",),
    )

    @hookimpl
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """e4m3 for every linear of the decoder layers."""
        return quantise_decoder(config, layers, FP8)

    @hookimpl
    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> dict[str, Array]:
        """Weight [in, out] float8_e4m3fn and scale [out] float32."""
        return pack_e4m3(weight) if scheme == FP8 else pack_plain(scheme, weight)

    @hookimpl
    def build_linear(self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> Layer:
        """An e4m3 product, or a plain one where the plan left the layer out."""
        return Fp8Linear(params) if scheme == FP8 else PlainLinear(spec, scheme, params)


class Fp8Linear:
    """``(x8 W8) * x_scale * scale + b``."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange(params["weight"], "float32")
        self.scale, self.bias = params["scale"], params.get("bias")
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias)

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear_fp8(x, self.weight, self.scale, self.bias)


def pack_e4m3(weight: Array) -> dict[str, Array]:
    """``q = e4m3(448 w / absmax)`` per output channel, scale = absmax / 448.

    Nearest, ties to even. A channel of zeros gets scale 0.
    """
    scale = np.empty(weight.shape[0], np.float32)

    def convert(rows: Array, start: int) -> Array:
        values = rows.astype(np.float32)
        absmax = np.abs(values).max(axis=1)
        scale[start : start + len(absmax)] = absmax / E4M3_MAX
        scaled = values * (E4M3_MAX / np.where(absmax > 0, absmax, 1))[:, None]
        return np.clip(scaled, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)

    return {"weight": converted(weight, "float8_e4m3fn", convert), "scale": scale}
