"""INT8 throughout: weights, activations and the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qinfer.core.specs import hookimpl
from qinfer.core.types import DeviceInfo, LinearSpec, ModelConfig, PluginInfo, QuantPlan
from qinfer.plugins.quant.a8w8 import A8W8


class A8W8C8(A8W8):
    """``a8w8`` with keys and values in int8, a scale for each token and head."""

    info = PluginInfo(
        name="a8w8c8",
        kind="quant",
        api="1.0",
        summary="a8w8 with an int8 KV cache",
    )

    @hookimpl
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """As ``a8w8``, and the cache."""
        return replace(super().plan_quant(config, layers, device), kv_cache="int8")
