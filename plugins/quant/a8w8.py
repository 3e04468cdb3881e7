"""INT8 on both sides: weights scaled per output channel, activations per token on the fly."""

from __future__ import annotations

from collections.abc import Mapping

from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.types import Array, LinearSpec, PluginInfo, Scheme
from qinfer.cuda_ops import ops
from qinfer.plugins.quant.decoder import DecoderScheme
from qinfer.plugins.quant.wint8 import pack_int8


class A8W8(DecoderScheme):
    """int8 weights and activations, products added up as int32."""

    info = PluginInfo(
        name="a8w8",
        kind="quant",
        api="1.0",
        summary="int8 weights per channel, int8 activations per token",
    )
    scheme = Scheme(
        name="a8w8",
        weight_dtype="int8",
        weight_scale="channel",
        input_dtype="int8",
        input_scale="token",
    )
    as_device = True

    def quantise(self, weight: Array) -> dict[str, Array]:
        """Weight [out, in] int8 and scale [out] float32."""
        return pack_int8(weight)

    def layer(self, spec: LinearSpec, params: Mapping[str, Array]) -> Layer | ExpertLayer:
        """A product of int8 numbers."""
        return A8W8Experts(spec, params) if spec.experts else A8W8Linear(params)


class A8W8Linear:
    """``(x8 W8) * (x_scale * scale) + b``; x_scale is ``input_scale`` [1] where that is given."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange_a8w8(params["weight"])
        self.scale, self.bias = params["scale"], params.get("bias")
        self.input_scale = params.get("input_scale")
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias, self.input_scale)

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear_a8w8(x, self.weight, self.scale, self.bias, self.input_scale)


class A8W8Experts:
    """``(x8 W8) * (x_scale * scale)`` with the W8 of each row's expert."""

    def __init__(self, spec: LinearSpec, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange_experts_a8w8(params["weight"], spec.experts)
        self.scale, self.out_features = params["scale"], spec.out_features
        self.input_scale = params.get("input_scale")
        self.nbytes = ops.nbytes(self.weight, self.scale, self.input_scale)

    def __call__(self, x: Array, experts: Array) -> Array:
        """[T * k or T, in], [T, k] -> [T * k, out]."""
        return ops.expert_linear_a8w8(
            x, self.weight, self.scale, experts, self.input_scale, self.out_features
        )
