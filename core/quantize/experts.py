"""Quantising the linears of a mixture of experts, each for the tokens that are routed to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qinfer.core.quantize.linear import Quantised, Recipe, quantise_linear
from qinfer.core.quantize.rounding import Floats, input_scale
from qinfer.core.types import Array, LinearSpec

FEWEST = 32
"""Tokens below which an expert's own inputs say too little: its scales are absolute maxima."""


@dataclass(frozen=True)
class Routed:
    """Inputs x [T * k, in], or [T, in] where the k pairs of a token share a row, and the experts
    [T, k] they go to.
    """

    x: Floats
    experts: NDArray[np.int32]

    def rows(self, expert: int) -> Floats:
        """The inputs of one expert."""
        pairs = np.flatnonzero(self.experts.reshape(-1) == expert)
        rows: Floats = self.x[pairs // (self.experts.size // len(self.x))]
        return rows


def quantise_experts(
    weight: Callable[[int], Floats], routed: Routed, spec: LinearSpec, recipe: Recipe
) -> Quantised:
    """All experts' arrays, one below the other; ``weight`` reads one expert's [out, in].

    Activations have one scale for all experts where it is static. An expert that few tokens go to
    is rounded by absolute maxima and counted in ``few``; the error is the mean of the others'.
    """
    if recipe.scheme.input_scale == "tensor":
        fixed = max(input_scale(recipe.grid, routed.x, recipe.range), 1e-30)
        recipe = replace(recipe, input_scale=fixed)
    plain = replace(recipe, methods=("absmax",))
    arrays: dict[str, Array] = {}
    errors, few = [], 0
    for expert in range(spec.experts):
        rows = routed.rows(expert)
        is_seen = len(rows) >= FEWEST
        few += not is_seen
        inputs = rows if len(rows) else np.zeros((1, spec.in_features), np.float32)
        made = quantise_linear(weight(expert), inputs, recipe if is_seen else plain)
        errors += [made.error] if is_seen and made.error is not None else []
        for name, array in made.arrays.items():
            if name == "input_scale":
                arrays[name] = array
                continue
            if name not in arrays:
                arrays[name] = np.empty((spec.rows, *array.shape[1:]), array.dtype)
            arrays[name][expert * spec.out_features : (expert + 1) * spec.out_features] = array
    error = float(np.mean(errors)) if errors else None
    return Quantised(arrays=arrays, error=error, few=few)
