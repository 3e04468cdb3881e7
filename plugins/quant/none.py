"""No quantisation: weights in the run's dtype, held in the dtype the device computes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qinfer.core.arrays import round_to
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
from qinfer.cuda_ops import ops


class Unquantised(QuantPlugin):
    """bfloat16, float16 or float32 weights, as ``--dtype`` says."""

    info = PluginInfo(
        name="none",
        kind="quant",
        api="1.0",
        summary="weights as they are: bfloat16, float16 or float32",
        aliases=("bf16",),
    )

    @hookimpl
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """Every layer in the run's dtype."""
        return QuantPlan(by_layer={spec.name: plain_scheme(config) for spec in layers})

    @hookimpl
    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> dict[str, Array]:
        """The weight, rounded to the run's dtype."""
        return pack_plain(spec, scheme, weight)

    @hookimpl
    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer:
        """A plain product."""
        return build_plain(spec, scheme, params)


class PlainLinear:
    """``x W + b`` in the compute dtype."""

    def __init__(self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange(params["weight"], scheme.input_dtype)
        self.bias = params.get("bias")
        self.dtype, self.out_features = scheme.weight_dtype, spec.out_features
        self.nbytes = ops.nbytes(self.weight, self.bias)
        self.held = ops.Held(
            format="plain", weight=self.weight, scale=None, bias=self.bias, out=spec.out_features
        )

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear(x, self.weight, self.bias, self.dtype, self.out_features)


class PlainExperts:
    """``x W`` in the compute dtype, with the W of each row's expert."""

    def __init__(self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]) -> None:
        self.weight = ops.arrange_experts(params["weight"], spec.experts, scheme.input_dtype)
        self.dtype, self.out_features = scheme.weight_dtype, spec.out_features
        self.nbytes = ops.nbytes(self.weight)

    def __call__(self, x: Array, experts: Array) -> Array:
        """[T * k or T, in], [T, k] -> [T * k, out]."""
        return ops.expert_linear(x, self.weight, experts, self.dtype, self.out_features)


def build_plain(
    spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
) -> Layer | ExpertLayer:
    """The layer that is not quantised."""
    return (PlainExperts if spec.experts else PlainLinear)(spec, scheme, params)


def plain_scheme(config: ModelConfig) -> Scheme:
    """The scheme of a layer that is not quantised; other schemes use it for what they leave out."""
    return Scheme(name="none", weight_dtype=config.dtype, input_dtype=config.compute_dtype)


def pack_plain(spec: LinearSpec, scheme: Scheme, weight: Array) -> dict[str, Array]:
    """The weight [out, in] rounded to ``scheme.weight_dtype``, not copied if it is of that type.

    Raises BadCheckpoint naming the layer when a number is too large for the dtype.
    """
    return {"weight": round_to(weight, scheme.weight_dtype, f"{spec.name}.weight")}
