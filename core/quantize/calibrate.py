"""One pass of the calibration data through the model, each linear quantised as it is reached.

All sequences go through the model together, as one ragged batch. A linear reads its weight from the
checkpoint only when it is called; it then sees the inputs that the quantised layers before it gave,
quantises its weight for them, and answers as the quantised layer. So at any time one weight and one
block's activations are in memory, and no family needs to be taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from qinfer.core.arrays import round_to
from qinfer.core.checkpoint.assemble import assemble
from qinfer.core.checkpoint.layout import Pick
from qinfer.core.checkpoint.loader import StreamedParts
from qinfer.core.hardware.place import place
from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.quantize.experts import Routed, quantise_experts
from qinfer.core.quantize.linear import Recipe, quantise_linear
from qinfer.core.quantize.rounding import Floats
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.quantize.work import WorkFolder
from qinfer.core.registry.hooks import Hooks
from qinfer.core.types import Array, LinearSpec, Scheme

STAYS = {
    "lm_head": "the vocabulary head keeps the model's precision",
    "router": "the choice of experts keeps the model's precision",
    "shared_gate": "the shared expert's gate keeps the model's precision",
}
SKIPPED = "--skip leaves it out"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What calibration decides with: the run's settings, and where finished linears go."""

    settings: QuantizeSettings
    work: WorkFolder
    hooks: Hooks
    advance: Callable[[int], None]
    specs: Mapping[str, LinearSpec]

    def recipe(self, spec: LinearSpec, scheme: Scheme) -> Recipe:
        """How a linear is quantised."""
        maker = self.specs.get(spec.scaled_by)
        is_held = maker is None or scheme_of(self.settings, maker)[0] is not None
        return self.settings.recipe(spec, scheme, is_held=is_held)


def scheme_of(settings: QuantizeSettings, spec: LinearSpec) -> tuple[Scheme | None, str]:
    """A linear's scheme, or None and why it is left out."""
    if spec.role in STAYS:
        return None, STAYS[spec.role]
    if settings.skips(spec.name):
        return None, SKIPPED
    scheme = settings.scheme(spec.in_features)
    size, _ = settings.groups
    return scheme, "" if scheme else f"{spec.in_features} inputs are no multiple of {size}"


class CalibratingParts(StreamedParts):
    """``ModelParts`` whose linears quantise themselves when they are first called."""

    plan: Plan

    def linear(self, spec: LinearSpec) -> Layer:
        """A linear that has not read its weight yet; its bias is loaded."""
        return self._calibrated(spec)

    def experts(self, spec: LinearSpec) -> ExpertLayer:
        """The same for the linears of all experts."""
        return cast(ExpertLayer, self._calibrated(spec))

    def _calibrated(self, spec: LinearSpec) -> CalibratedLinear:
        pick = self._take(f"{spec.name}.weight", (spec.rows, spec.in_features))
        bias = self._rounded(f"{spec.name}.bias", (spec.out_features,)) if spec.bias else None
        plain = self._quant_plan.by_layer[spec.name]
        return CalibratedLinear(self, spec, pick, plain, bias)

    def weight(self, pick: Pick, name: str) -> Array:
        """The weight [rows, in] in the model's dtype."""
        return round_to(assemble(self._checkpoint, pick), self._config.dtype, name)


class CalibratedLinear:
    """A layer for one call: reads, quantises, answers and forgets."""

    def __init__(
        self,
        parts: CalibratingParts,
        spec: LinearSpec,
        pick: Pick,
        plain: Scheme,
        bias: Array | None,
    ) -> None:
        self.parts, self.spec, self.pick, self.plain, self.bias = parts, spec, pick, plain, bias

    def __call__(self, x: Array, *experts: Array) -> Array:
        """[T, in] -> [T, out]; with ``experts`` [T, k] as an ``ExpertLayer`` is called."""
        plan, spec = self.parts.plan, self.spec
        scheme, why = scheme_of(plan.settings, spec)
        if scheme is None:
            weight = self.parts.weight(self.pick, spec.name)
            arrays = dict(plan.hooks.pack_weight(spec, self.plain, weight))
            plan.work.skip(spec, why)
        else:
            arrays = plan.work.finished(spec) or self._quantised(scheme, x, *experts)
        params = {name: place(array) for name, array in arrays.items()}
        if self.bias is not None:
            params["bias"] = self.bias
        layer = plan.hooks.build_linear(spec, scheme or self.plain, params)
        plan.advance(1)
        answer: Array = cast(Callable[..., Array], layer)(x, *experts)
        return answer

    def _quantised(self, scheme: Scheme, x: Array, *experts: Array) -> dict[str, Array]:
        plan, spec = self.parts.plan, self.spec
        recipe = plan.recipe(spec, scheme)
        if experts:
            routed = Routed(x.numpy(), experts[0].numpy())
            made = quantise_experts(self._expert, routed, spec, recipe)
        else:
            made = quantise_linear(self._weight(self.pick, spec.name), x.numpy(), recipe)
        plan.work.add(spec, scheme, made)
        return made.arrays

    def _expert(self, number: int) -> Floats:
        """The weight [out, in] of one expert, read alone."""
        rule, spec = self.pick.rule, self.spec
        each = len(rule.source) // spec.experts
        if not each:  # one tensor holds all of them
            rows = slice(number * spec.out_features, (number + 1) * spec.out_features)
            return self._weight(self.pick, spec.name, rows)
        part = slice(number * each, (number + 1) * each)
        own = replace(
            rule,
            source=rule.source[part],
            sizes=rule.sizes[part],
            op="fuse" if each > 1 else "copy",
            shape=(spec.out_features, spec.in_features),
        )
        return self._weight(replace(self.pick, rule=own), f"{spec.name} of expert {number}")

    def _weight(self, pick: Pick, name: str, rows: slice = slice(None)) -> Floats:
        """Those rows of a weight, to be quantised."""
        return np.asarray(self.parts.weight(pick, name)[rows], np.float32)
