"""The parts a model is built from, streamed: one tensor at a time is read, packed and placed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from qinfer.core.arrays import numpy_dtype, round_to
from qinfer.core.checkpoint.ahead import Ahead
from qinfer.core.checkpoint.assemble import assemble
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.join import Packed, join, rows
from qinfer.core.checkpoint.layout import LoadPlan, Pick
from qinfer.core.checkpoint.rules import num_parameters, source_shapes
from qinfer.core.errors import BrokenPlugin
from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.types import (
    Array,
    LinearSpec,
    LoadStats,
    ModelConfig,
    QuantPlan,
    Scheme,
    WeightRule,
)

Place = Callable[[NDArray[Any], str], Array]
"""Turns a numpy array into a device tensor of the dtype named; "" keeps the array's own."""


class PackingHooks(Protocol):
    """The two hooks of a quant scheme that loading calls."""

    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> Mapping[str, Array]:
        """A weight [out, in] as named numpy arrays, or tensors that are on the device."""

    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer:
        """The layer over those arrays, placed."""


class StreamedParts:
    """``core.protocols.ModelParts`` over a checkpoint.

    ``place`` puts an array on the device. A read-only array may be a mapped file and has to be
    copied; a writable one is not used again here. ``on_tensor`` is told the bytes read of each
    target; they add up to ``plan.total_bytes``. ``ahead``: parameters read before they are asked
    for, in as many threads. Call ``finish`` when the model is built, and ``close`` in any case.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: LoadPlan,
        config: ModelConfig,
        hooks: PackingHooks,
        quant_plan: QuantPlan,
        *,
        place: Place,
        on_tensor: Callable[[int], None] | None = None,
        ahead: int = 0,
    ) -> None:
        self._checkpoint = checkpoint
        self._ahead = Ahead(checkpoint, plan.picks, ahead)
        self._config = config
        self._hooks = hooks
        self._quant_plan = quant_plan
        self._place = place
        self._on_tensor = on_tensor or (lambda _: None)
        self._waiting = dict(plan.picks)
        self._rules = [pick.rule for pick in plan.picks.values()]
        self._targets = frozenset(plan.picks)
        self._bytes = 0
        self._layers: Counter[str] = Counter()
        self._unstored: list[str] = []

    def linear(self, spec: LinearSpec) -> Layer:
        """Read, pack and place one linear layer.

        Raises BadCheckpoint for a tensor that holds NaN or infinity, BrokenPlugin for a layer the
        weight rules or the quant plan do not have, or that was asked for before.
        """
        return cast(Layer, self._layer(spec))

    def experts(self, spec: LinearSpec) -> ExpertLayer:
        """Read, pack and place the linears of all experts. Raises as ``linear`` does."""
        return cast(ExpertLayer, self._layer(spec))

    def _pack(self, spec: LinearSpec, plain: Scheme, pick: Pick) -> Packed:
        """The scheme and arrays of a linear: packed here, or as the checkpoint holds them."""
        rule = pick.rule
        if all(self._checkpoint.stored(name) is None for name in rule.source):
            self._unstored.append(spec.name)
            weight = self._ahead.get(rule.target, pick)
            return plain, self._hooks.pack_weight(spec=spec, scheme=plain, weight=weight)
        parts: list[Packed] = []
        for name, shape in zip(rule.source, source_shapes(rule), strict=True):
            stored = self._checkpoint.stored(name)
            if stored is not None:
                parts.append((stored.scheme, stored.load()))
                continue
            own = WeightRule(target=rule.target, source=(name,), shape=shape, linear=True)
            part = replace(
                spec, name=f"{spec.name}.{len(parts)}", out_features=shape[0], parts=(shape[0],)
            )
            weight = assemble(self._checkpoint, replace(pick, rule=own))
            packed = self._hooks.pack_weight(spec=part, scheme=plain, weight=weight)
            parts.append((plain, packed))
        scheme, packed = join(parts)
        if rule.op == "split":
            return scheme, rows(scheme, packed, rule.start, rule.start + rule.shape[0])
        return scheme, packed

    def parameter(self, name: str, dtype: str = "") -> Array:
        """A tensor by its rule's target: rounded to ``config.dtype``, held in ``dtype`` (by
        default the compute dtype).

        Raises as ``linear`` does.
        """
        return self._rounded(name, None, dtype)

    def constant(self, array: Array, dtype: str = "") -> Array:
        """A computed numpy table on the device, by default in the compute dtype."""
        return self._place(array, dtype or self._config.compute_dtype)

    def finish(self) -> None:
        """Raise BrokenPlugin if the weight rules give targets that nobody asked for."""
        if self._waiting:
            names = list(self._waiting)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise _broken(
                f"has weight rules for targets that its build_model never asks for: "
                f"{', '.join(names[:5])}{more}"
            )

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.close()

    def stats(self, seconds: float) -> LoadStats:
        """What has been loaded so far; a tensor read for two targets counts as one parameter."""
        return LoadStats(
            seconds=seconds,
            parameter_bytes=self._bytes,
            num_parameters=num_parameters(self._rules),
            layers_by_scheme=dict(self._layers),
            skipped=self._skipped(),
        )

    def _layer(self, spec: LinearSpec) -> Layer | ExpertLayer:
        scheme = self._quant_plan.by_layer.get(spec.name)
        if scheme is None:
            raise _broken(f"asks for the linear {spec.name}, which linear_layers does not list")
        target = f"{spec.name}.weight"
        pick = self._take(target, (spec.rows, spec.in_features))
        scheme, packed = self._pack(spec, scheme, pick)
        before = self._bytes
        params = {name: self._put(array, "") for name, array in packed.items()}
        del packed
        self._on_tensor(pick.nbytes)
        if spec.bias:
            params["bias"] = self._rounded(f"{spec.name}.bias", (spec.out_features,))
        self._layers[scheme.name] += 1
        layer = self._hooks.build_linear(spec=spec, scheme=scheme, params=params)
        # What a layer holds may differ from what it was given: the device has an order of its own.
        self._bytes = before + getattr(layer, "nbytes", self._bytes - before)
        return layer

    def _skipped(self) -> dict[str, str]:
        """Why layers are not quantised: the plan's reasons, or that the checkpoint has them so."""
        if len(self._unstored) == sum(self._layers.values()):
            return dict(self._quant_plan.skipped)
        return dict.fromkeys(self._unstored, "the checkpoint holds it unquantised")

    def _rounded(self, name: str, shape: tuple[int, ...] | None, dtype: str = "") -> Array:
        pick = self._take(name, shape)
        array = round_to(self._ahead.get(name, pick), self._config.dtype, name)
        placed = self._put(array, dtype or self._config.compute_dtype)
        self._on_tensor(pick.nbytes)
        return placed

    def _put(self, array: Array, dtype: str) -> Array:
        if not isinstance(array, np.ndarray):  # packed where it is
            self._bytes += int(array.size) * array.element_size()
            return array
        self._bytes += array.size * numpy_dtype(dtype).itemsize if dtype else array.nbytes
        return self._place(array, dtype)

    def _take(self, target: str, shape: tuple[int, ...] | None) -> Pick:
        """Strike a target off the list of those not asked for yet."""
        pick = self._waiting.pop(target, None)
        if pick is None:
            if target in self._targets:
                raise _broken(f"asks for {target} a second time")
            raise _broken(f"asks for {target}, which its weight_rules do not give")
        if shape is not None and pick.rule.shape != shape:
            raise _broken(
                f"asks for {target} as {list(shape)}, its weight rule says {list(pick.rule.shape)}"
            )
        return pick


def _broken(what: str) -> BrokenPlugin:
    return BrokenPlugin(
        f"the model plugin {what}.",
        remedy="This is a mistake in the plugin: report it to its authors.",
    )
