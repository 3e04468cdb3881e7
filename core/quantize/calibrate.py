"""One pass of the calibration data through the model, each linear quantised as it is reached.

All sequences go through the model together, as one ragged batch. A linear reads its weight from the
checkpoint only when it is called; it then sees the inputs that the quantised layers before it gave,
quantises its weight for them, and answers as the quantised layer. So at any time one weight and one
block's activations are in memory, and no family needs to be taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from qinfer.core.arrays import round_to
from qinfer.core.checkpoint.assemble import assemble
from qinfer.core.checkpoint.layout import Pick
from qinfer.core.checkpoint.loader import StreamedParts
from qinfer.core.device import import_paddle, place
from qinfer.core.hooks import Hooks
from qinfer.core.protocols import ExpertLayer, Layer, Model
from qinfer.core.quantize.linear import quantise_linear
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.quantize.work import WorkFolder
from qinfer.core.types import Array, LayerCache, LinearSpec, ModelConfig, Scheme, StepInput

BLOCK_SIZE = 16
STAYS = {
    "lm_head": "the vocabulary head keeps the model's precision",
    "router": "the choice of experts keeps the model's precision",
    "shared_gate": "the shared expert's gate keeps the model's precision",
}
EXPERTS = "experts are not calibrated; quantise them while loading, with --quant"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What calibration decides with: the run's settings, and where finished linears go."""

    settings: QuantizeSettings
    work: WorkFolder
    hooks: Hooks
    advance: Callable[[int], None]
    specs: Mapping[str, LinearSpec]

    def scheme(self, spec: LinearSpec) -> tuple[Scheme | None, str]:
        """A linear's scheme, or None and why it is left out."""
        if spec.role in STAYS or spec.experts:
            return None, STAYS.get(spec.role, EXPERTS)
        scheme = self.settings.scheme(spec.in_features)
        size = self.settings.group_size
        return scheme, "" if scheme else f"{spec.in_features} inputs are no multiple of {size}"

    def may_scale(self, spec: LinearSpec) -> bool:
        """Whether scaling a linear's input can be written down."""
        maker = self.specs.get(spec.scaled_by)
        is_held = maker is None or self.scheme(maker)[0] is not None
        return is_held and self.settings.may_scale(spec)


class CalibratingParts(StreamedParts):
    """``ModelParts`` whose linears quantise themselves when they are first called."""

    plan: Plan

    def linear(self, spec: LinearSpec) -> CalibratedLinear:
        """A linear that has not read its weight yet; its bias is loaded."""
        pick = self._take(f"{spec.name}.weight", (spec.out_features, spec.in_features))
        bias = self._rounded(f"{spec.name}.bias", (spec.out_features,)) if spec.bias else None
        plain = self._quant_plan.by_layer[spec.name]
        return CalibratedLinear(self, spec, pick, plain, bias)

    def experts(self, spec: LinearSpec) -> ExpertLayer:
        """The linears of all experts, loaded and left as they are."""
        self.plan.work.skip(spec, EXPERTS)
        self.plan.advance(1)
        return super().experts(spec)

    def weight(self, pick: Pick, name: str) -> Array:
        """The weight [out, in] in float32, rounded to the model's dtype."""
        weight = round_to(assemble(self._checkpoint, pick), self._config.dtype, name)
        return np.asarray(weight, np.float32)


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

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        plan, spec = self.parts.plan, self.spec
        scheme, why = plan.scheme(spec)
        arrays = plan.work.finished(spec)
        if scheme is None:
            weight = self.parts.weight(self.pick, spec.name)
            arrays = dict(plan.hooks.pack_weight(spec, self.plain, weight))
            plan.work.skip(spec, why)
        elif arrays is None:
            made = quantise_linear(
                self.parts.weight(self.pick, spec.name),
                x.numpy(),
                scheme,
                plan.settings.methods,
                may_scale=plan.may_scale(spec),
                per_tensor=spec.parts if plan.settings.per_tensor else (),
            )
            arrays = made.arrays
            plan.work.add(spec, scheme, made)
        params = {name: place(np.array(array), "") for name, array in arrays.items()}
        if self.bias is not None:
            params["bias"] = self.bias
        layer = plan.hooks.build_linear(spec, scheme or self.plain, params)
        plan.advance(1)
        answer: Array = cast(Layer, layer)(x)
        return answer


def run_calibration(model: Model, config: ModelConfig, pieces: Sequence[Sequence[int]]) -> None:
    """Put all sequences through the model once."""
    paddle = import_paddle()
    counts = [len(piece) for piece in pieces]
    blocks = [-(-count // BLOCK_SIZE) for count in counts]
    starts = np.cumsum([0, *blocks[:-1]])
    tables = np.zeros((len(pieces), max(blocks)), np.int32)
    for row, (start, count) in enumerate(zip(starts, blocks, strict=True)):
        tables[row, :count] = np.arange(start, start + count)
    positions = [np.arange(count) for count in counts]
    slots = [start * BLOCK_SIZE + at for start, at in zip(starts, positions, strict=True)]
    arrays: Mapping[str, Any] = {
        "token_ids": np.concatenate([np.asarray(piece, np.int64) for piece in pieces]),
        "positions": np.concatenate(positions).astype(np.int64),
        "query_starts": np.cumsum([0, *counts]).astype(np.int32),
        "seq_lens": np.array(counts, np.int32),
        "slot_mapping": np.concatenate(slots).astype(np.int64),
        "block_tables": tables,
        "logit_rows": np.zeros(1, np.int64),
    }
    shape = [sum(blocks), BLOCK_SIZE, config.num_kv_heads, config.head_dim]
    cache = [
        LayerCache(keys=paddle.empty(shape), values=paddle.empty(shape))
        for _ in range(config.num_layers)
    ]
    with paddle.no_grad():
        model(StepInput(**{name: place(array, "") for name, array in arrays.items()}), cache)
