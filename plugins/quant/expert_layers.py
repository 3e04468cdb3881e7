"""Linears of experts for which there is no operator of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from qinfer.core.checkpoint.join import rows
from qinfer.core.protocols import Layer
from qinfer.core.types import Array, LinearSpec, Scheme
from qinfer.cuda_ops import ops

Build = Callable[[LinearSpec, Scheme, Mapping[str, Array]], Layer]


class SeparateExperts:
    """A layer for each expert, whatever its scheme: as slow as it is general."""

    def __init__(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array], build: Build
    ) -> None:
        """``build`` makes the layer of one expert."""
        one = replace(spec, experts=0)
        self.layers = [build(one, own, mine) for own, mine in _apart(spec, scheme, params)]
        self.out_features = spec.out_features
        self.nbytes: int = sum(getattr(layer, "nbytes", 0) for layer in self.layers)

    def __call__(self, x: Array, experts: Array) -> Array:
        """[T * k or T, in], [T, k] -> [T * k, out]."""
        return ops.each_expert(
            x,
            experts,
            len(self.layers),
            self.out_features,
            lambda rows, expert: self.layers[expert](rows),
        )


def _apart(
    spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
) -> Iterator[tuple[Scheme, Mapping[str, Array]]]:
    """Scheme and arrays of each expert."""
    if not scheme.parts:
        # Paddle does not slice e4m3.
        held = {name: _sliceable(array) for name, array in params.items()}
        for expert in range(spec.experts):
            start = expert * spec.out_features
            own = rows(scheme, held, start, start + spec.out_features)
            yield scheme, {name: own[name].view(params[name].dtype) for name in own}
        return
    each = len(scheme.parts) // spec.experts  # projections of one expert
    for expert in range(spec.experts):
        parts = scheme.parts[expert * each : (expert + 1) * each]
        mine: dict[str, Array] = {}
        for number in range(each):
            begin = f"{expert * each + number}."
            found = {n.removeprefix(begin): a for n, a in params.items() if n.startswith(begin)}
            mine |= {f"{number}.{n}" if each > 1 else n: a for n, a in found.items()}
        yield (replace(scheme, parts=parts) if each > 1 else parts[0]), mine


def _sliceable(array: Array) -> Array:
    return array.view("int8") if "float8" in str(array.dtype) else array
