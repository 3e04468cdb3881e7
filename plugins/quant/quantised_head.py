"""Schemes that quantise the vocabulary head too.

Of a small model the head is a large part of what a decoded token reads: with int4 layers half. It
is held in int8 with a scale for each token of the vocabulary; a tied embedding is a copy of its
own, which only looks rows up and keeps the model's precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
from qinfer.plugins.quant.decoder import DecoderScheme
from qinfer.plugins.quant.wint4 import WInt4
from qinfer.plugins.quant.wint8 import WInt8

HEAD = "lm_head"
"""The head's role."""


class QuantisedHead(QuantPlugin):
    """The scheme of ``body`` for everything it quantises, and that of ``head`` for the head."""

    def __init__(self, name: str, body: DecoderScheme, head: DecoderScheme) -> None:
        summary = f"{body.info.name}, and the vocabulary head in {head.scheme.weight_dtype}"
        self.info = PluginInfo(name=name, kind="quant", api="1.0", summary=summary)
        self.body, self.head = body, head

    @hookimpl
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """As the body, but for the head."""
        plan = self.body.plan_quant(config, layers, device)
        heads = {spec.name: self.head.scheme for spec in layers if spec.role == HEAD}
        skipped = {name: why for name, why in plan.skipped.items() if name not in heads}
        return replace(plan, by_layer={**plan.by_layer, **heads}, skipped=skipped)

    @hookimpl
    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> Mapping[str, Array]:
        """As the one of the two that it is for."""
        return self._of(spec).pack_weight(spec, scheme, weight)

    @hookimpl
    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer:
        """As the one of the two that it is for."""
        return self._of(spec).build_linear(spec, scheme, params)

    def _of(self, spec: LinearSpec) -> DecoderScheme:
        return self.head if spec.role == HEAD else self.body


WINT8 = QuantisedHead("wint8-h8", WInt8(), WInt8())
WINT4 = QuantisedHead("wint4-h8", WInt4(), WInt8())
