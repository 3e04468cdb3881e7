"""What schemes that quantise every linear of the decoder layers in one way have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from qinfer.core.hardware.place import place
from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.specs import QuantPlugin, hookimpl
from qinfer.core.types import Array, DeviceInfo, LinearSpec, ModelConfig, QuantPlan, Scheme
from qinfer.cuda_ops import ops
from qinfer.plugins.quant.none import build_plain, pack_plain, plain_scheme

STAYS = {
    "lm_head": "the vocabulary head keeps the model's precision",
    "router": "the choice of experts keeps the model's precision",
    "shared_gate": "the shared expert's gate keeps the model's precision",
}
"""Role -> why no scheme quantises it."""


class DecoderScheme(QuantPlugin):
    """``scheme`` for every linear but the vocabulary head, the router and the shared expert's gate,
    which PaddleNLP and vLLM leave too.
    """

    scheme: Scheme
    as_device: ClassVar[bool] = False
    """Whether ``ops.quantise`` has the formula of ``quantise``: a device may do it by itself."""

    def quantise(self, weight: Array) -> dict[str, Array]:
        """A numpy weight [out, in] as named numpy arrays."""
        raise NotImplementedError

    def layer(self, spec: LinearSpec, params: Mapping[str, Array]) -> Layer | ExpertLayer:
        """The layer over those arrays, on the device."""
        raise NotImplementedError

    def refusal(self, spec: LinearSpec) -> str:
        """Why a layer cannot have this scheme, or an empty text."""
        return STAYS.get(spec.role, "")

    @hookimpl
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """The scheme where it is not refused, the model's own precision elsewhere."""
        skipped = {spec.name: why for spec in layers if (why := self.refusal(spec))}
        plain = plain_scheme(config)
        by_layer = {spec.name: plain if spec.name in skipped else self.scheme for spec in layers}
        return QuantPlan(by_layer=by_layer, skipped=skipped)

    @hookimpl
    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> dict[str, Array]:
        """The weight quantised, or as it is where the plan left the layer out."""
        if scheme != self.scheme:
            return pack_plain(spec, scheme, weight)
        if not (self.as_device and ops.quantise.is_native):
            return self.quantise(weight)
        codes, scale = ops.quantise(place(weight), scheme.weight_dtype)
        return {"weight": codes, "scale": scale}

    @hookimpl
    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer:
        """A quantised layer, or a plain one where the plan left the layer out."""
        if scheme != self.scheme:
            return build_plain(spec, scheme, params)
        return self.layer(spec, params)
