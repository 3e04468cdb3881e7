"""Weight-only int4: symmetric, one scale for every 64 inputs of an output channel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qinfer.core.arrays import converted
from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.types import Array, LinearSpec, PluginInfo, Scheme
from qinfer.cuda_ops import ops
from qinfer.plugins.quant.decoder import DecoderScheme

GROUP = 64


class WInt4(DecoderScheme):
    """int4 weights, activations in the compute dtype."""

    info = PluginInfo(
        name="wint4",
        kind="quant",
        api="1.0",
        summary=f"int4 weights, one scale for {GROUP} inputs of an output channel",
        aliases=("weight_only_int4",),
    )
    scheme = Scheme(name="wint4", weight_dtype="int4", weight_scale="group", group_size=GROUP)
    as_device = True

    def quantise(self, weight: Array) -> dict[str, Array]:
        """Weight [out, in] int8 with values -7 to 7, and scale [out, in / 64] float32."""
        return pack_int4(weight)

    def layer(self, spec: LinearSpec, params: Mapping[str, Array]) -> Layer | ExpertLayer:
        """A product with int4 weights."""
        return Int4Experts(spec, params) if spec.experts else Int4Linear(spec, params)

    def refusal(self, spec: LinearSpec) -> str:
        """The head, and layers whose inputs do not make whole groups."""
        if spec.in_features % GROUP:
            return f"{spec.in_features} inputs are no multiple of {GROUP}"
        return super().refusal(spec)


class Int4Linear:
    """``x (W * scale) + b`` with W in int4."""

    def __init__(self, spec: LinearSpec, params: Mapping[str, Array]) -> None:
        self.weight, self.scale = ops.arrange_int4(params["weight"], params["scale"])
        self.bias, self.out_features = params.get("bias"), spec.out_features
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias)
        self.held = ops.Held(
            format="int4",
            weight=self.weight,
            scale=self.scale,
            bias=self.bias,
            out=spec.out_features,
        )

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear_int4(x, self.weight, self.scale, self.bias, self.out_features)


class Int4Experts:
    """``x (W * scale)`` with the int4 W of each row's expert."""

    def __init__(self, spec: LinearSpec, params: Mapping[str, Array]) -> None:
        self.weight, self.scale = ops.arrange_experts_int4(
            params["weight"], params["scale"], spec.experts
        )
        self.out_features = spec.out_features
        self.nbytes = ops.nbytes(self.weight, self.scale)

    def __call__(self, x: Array, experts: Array) -> Array:
        """[T * k or T, in], [T, k] -> [T * k, out]."""
        return ops.expert_linear_int4(x, self.weight, self.scale, experts, self.out_features)


def is_compact(spec: LinearSpec, params: Mapping[str, Array]) -> bool:
    """Whether the groups of a stored int4 weight are those that these layers take."""
    groups: int = params["scale"].shape[1]
    return spec.in_features // groups % GROUP == 0


def pack_int4(weight: Array, group: int = GROUP) -> dict[str, Array]:
    """``q = round_half_away(7 w / absmax)`` in each group of inputs, scale = absmax / 7.

    A group of zeros gets scale 0.
    """
    scale = np.empty((weight.shape[0], weight.shape[1] // group), np.float32)

    def convert(rows: Array, start: int) -> Array:
        groups = rows.astype(np.float32).reshape(len(rows), -1, group)
        absmax = np.abs(groups).max(axis=2)
        scale[start : start + len(rows)] = absmax / 7
        scaled = groups * (7 / np.where(absmax > 0, absmax, 1))[:, :, None]
        away = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
        return np.clip(away, -7, 7).reshape(rows.shape)

    return {"weight": converted(weight, "int8", convert), "scale": scale}
