"""No quantisation: weights in the run's dtype, held in the dtype the device computes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qinfer.core.arrays import packed_columns, rounded
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
        """The weight [in, out], rounded to the run's dtype."""
        return pack_plain(scheme, weight)

    @hookimpl
    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> PlainLinear:
        """A plain product."""
        return PlainLinear(params)


class PlainLinear:
    """``x W + b`` in the compute dtype."""

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.weight, self.bias = params["weight"], params.get("bias")

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return ops.linear(x, self.weight, self.bias)


def plain_scheme(config: ModelConfig) -> Scheme:
    """The scheme of a layer that is not quantised; other schemes use it for what they leave out."""
    return Scheme(name="none", weight_dtype=config.dtype, input_dtype=config.compute_dtype)


def pack_plain(scheme: Scheme, weight: Array) -> dict[str, Array]:
    """Round to ``scheme.weight_dtype``, hold in ``scheme.input_dtype``, as [in, out]."""

    def convert(rows: Array, start: int) -> Array:
        return rounded(rows, scheme.weight_dtype)

    return {"weight": packed_columns(weight, scheme.input_dtype, convert)}
