"""The layer for any scheme and arrays that a quantised checkpoint may hold (see core/stored.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from qinfer.core.errors import Unsupported
from qinfer.core.hardware.place import place
from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.types import Array, LinearSpec, Scheme
from qinfer.cuda_ops import ops
from qinfer.plugins.quant.a8w8 import A8W8Experts, A8W8Linear
from qinfer.plugins.quant.channel_layers import (
    fp8_experts,
    fp8_linear,
    int8_experts,
    int8_linear,
)
from qinfer.plugins.quant.expert_layers import SeparateExperts
from qinfer.plugins.quant.none import PlainExperts, PlainLinear
from qinfer.plugins.quant.wint4 import Int4Experts, Int4Linear, is_compact

FLOATS = ("float32", "float16", "bfloat16")
ADJUSTED = frozenset({"smooth", "shift", "order", "zero"})

BLOCKS = ("float8_e4m3fn", "block", "group")
"""The kind of Qwen's own FP8 checkpoints."""


def build_layer(
    spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
) -> Layer | ExpertLayer:
    """The linear, or that of experts, for ``scheme`` over arrays named as in ``core.stored``, now
    device tensors.

    Raises Unsupported for a combination that has no layer.
    """
    if spec.experts:
        return _experts(spec, scheme, params)
    return _single(spec, scheme, params)


def _single(spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> Layer:
    if scheme.parts:
        return JoinedLinear(spec, scheme, params)
    is_plain = scheme.weight_dtype in FLOATS
    kind = scheme.weight_dtype, scheme.weight_scale, scheme.input_scale
    make = PlainLinear if is_plain else _LAYERS.get(kind)
    if make is None:
        raise Unsupported(
            f"{spec.name}: no layer computes with {scheme.weight_dtype} weights scaled by "
            f"{scheme.weight_scale} and inputs scaled by {scheme.input_scale}",
            remedy="Quantise the model in another way, or take an unquantised checkpoint.",
        )
    # What changes the input first, and zero points, are the same for all of them.
    layer = make(spec, scheme, params)
    if not ADJUSTED & params.keys():
        return layer
    return AdjustedLinear(layer, params)


def _experts(spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> ExpertLayer:
    """The layer of all experts, or one for each where no operator does them together."""
    if scheme.weight_dtype in FLOATS and params.keys() == {"weight"}:
        return PlainExperts(spec, scheme, params)
    kind = scheme.weight_dtype, scheme.weight_scale, scheme.input_scale
    if kind in _EXPERTS and not ADJUSTED & params.keys():
        return _EXPERTS[kind](spec, params)
    if scheme.weight_dtype == "int4" and not ADJUSTED & params.keys() and is_compact(spec, params):
        return Int4Experts(spec, params)
    if kind == BLOCKS and not spec.out_features % scheme.group_size:
        return Fp8BlockExperts(spec, scheme, params)
    return SeparateExperts(spec, scheme, params, _single)


class Fp8StaticLinear:
    """``(x8 W8) * (input_scale * scale) + b`` in e4m3."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange_fp8(params["weight"])
        self.scale, self.bias = params["scale"], params.get("bias")
        self.input_scale = params["input_scale"]
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias, self.input_scale)

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear_fp8_static(x, self.weight, self.scale, self.bias, self.input_scale)


class Fp8BlockLinear:
    """e4m3 with a scale for each block of the weight, and for each token's run of inputs."""

    def __init__(self, scheme: Scheme, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange_fp8(params["weight"])
        self.scale, self.bias, self.block = params["scale"], params.get("bias"), scheme.group_size
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias)

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear_fp8_block(x, self.weight, self.scale, self.bias, self.block)


class Fp8BlockExperts:
    """e4m3 in blocks, with the weight of each row's expert."""

    def __init__(self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange_experts_fp8(params["weight"], spec.experts)
        self.scale, self.block = params["scale"], scheme.group_size
        self.out_features = spec.out_features
        self.nbytes = ops.nbytes(self.weight, self.scale)

    def __call__(self, x: Array, experts: Array) -> Array:
        """[T * k or T, in], [T, k] -> [T * k, out]."""
        return ops.expert_linear_fp8_block(
            x, self.weight, self.scale, experts, self.block, self.out_features
        )


class GroupLinear:
    """``x (W * scale) + b`` with integers in groups of any size."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.weight, self.scale = ops.arrange_groups(params["weight"], params["scale"])
        self.bias = params.get("bias")
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias)

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear_groups(x, self.weight, self.scale, self.bias)


class AdjustedLinear:
    """A layer whose input is reordered, or shifted and scaled, or whose weight has zero points."""

    def __init__(self, layer: Layer, params: Mapping[str, Array]) -> None:
        self.layer, self.order = layer, params.get("order")
        self.smooth, self.shift = params.get("smooth"), params.get("shift")
        self.zero: Array | None = None
        if "zero" in params:
            zero = params["zero"].numpy() * -params["scale"].numpy()
            self.zero = place(zero.T)  # here, as Paddle's own transposition is not there for a card
        extra = ops.nbytes(self.order, self.smooth, self.shift, self.zero)
        self.nbytes: int = getattr(layer, "nbytes", 0) + extra

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        if self.order is not None:
            x = ops.take_columns(x, self.order)
        if self.smooth is not None or self.shift is not None:
            x = ops.scale_shift(x, self.smooth, self.shift)
        y = self.layer(x)
        return y if self.zero is None else ops.add_zero_points(y, x, self.zero)


class JoinedLinear:
    """Projections of one input that have no scheme in common, each computed by itself."""

    def __init__(self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> None:
        if len(spec.parts) != len(scheme.parts):
            raise Unsupported(
                f"{spec.name}: the checkpoint quantises {len(scheme.parts)} projections of this "
                "layer in different ways, which cannot be computed apart",
                remedy="Quantise all of them alike.",
            )
        bias, start = params.get("bias"), 0
        self.layers: list[Layer] = []
        for number, (size, own) in enumerate(zip(spec.parts, scheme.parts, strict=True)):
            begin = f"{number}."
            mine = {n.removeprefix(begin): a for n, a in params.items() if n.startswith(begin)}
            if bias is not None:
                mine["bias"] = bias[start : start + size]
            start += size
            part = replace(spec, name=f"{spec.name}.{number}", out_features=size, parts=(size,))
            self.layers.append(_single(part, own, mine))
        self.nbytes: int = sum(getattr(layer, "nbytes", 0) for layer in self.layers)

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.join_columns([layer(x) for layer in self.layers])


def _int4(spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> Layer:
    """The fast layer where groups are what it wants, else the general one."""
    return Int4Linear(spec, params) if is_compact(spec, params) else GroupLinear(params)


Make = Callable[[LinearSpec, Scheme, Mapping[str, Array]], Layer]


def _over(layer: Callable[[Mapping[str, Array]], Layer]) -> Make:
    """For layers that need nothing but the arrays."""
    return lambda spec, scheme, params: layer(params)


_LAYERS: Mapping[tuple[str, str, str], Make] = {
    ("int8", "channel", "none"): _over(int8_linear),
    ("int8", "channel", "token"): _over(A8W8Linear),
    ("int8", "channel", "tensor"): _over(A8W8Linear),
    ("int8", "group", "none"): _over(GroupLinear),
    ("int4", "group", "none"): _int4,
    ("int4", "channel", "none"): _int4,
    ("float8_e4m3fn", "channel", "token"): _over(fp8_linear),
    ("float8_e4m3fn", "channel", "tensor"): _over(Fp8StaticLinear),
    BLOCKS: lambda _, scheme, params: Fp8BlockLinear(scheme, params),
}
"""(weight dtype, weight scale, input scale) -> what builds the layer. A scale for a whole tensor is
repeated for every channel when it is read."""

_EXPERTS: Mapping[
    tuple[str, str, str], Callable[[LinearSpec, Mapping[str, Array]], ExpertLayer]
] = {
    ("int8", "channel", "none"): int8_experts,
    ("int8", "channel", "token"): A8W8Experts,
    ("int8", "channel", "tensor"): A8W8Experts,
    ("float8_e4m3fn", "channel", "token"): fp8_experts,
}
