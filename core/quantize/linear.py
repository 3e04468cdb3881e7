"""Quantising one linear from its weight and the inputs that the calibration data give it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from qinfer.core.quantize.gptq import gptq
from qinfer.core.quantize.products import gram, product
from qinfer.core.quantize.rounding import RANGES, Fit, Floats, Grid, input_scale, rounded_input
from qinfer.core.quantize.scaling import awq_candidates, best_scale, smooth_candidates
from qinfer.core.types import Array, Scheme

SAMPLE = 512
"""Tokens that scalings are searched on, and errors measured, spread over the calibration data."""

OUTPUTS = {"smoothquant": 512, "awq": 64}
"""Rows of the weight that scalings are searched for: SmoothQuant gained by more than 64, and AWQ,
whose every try searches scales too, did not (NOTES.md).
"""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Arrays as ``core.stored`` names them, and the outputs' relative error: the square root of
    their mean square error over their mean square. ``few``: experts with too few tokens to measure
    that; the error is None where all are.
    """

    arrays: dict[str, Array]
    error: float | None
    few: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a linear is quantised: the scheme, methods by name, whether groups have zero points;
    ``may_scale``: inputs may be scaled before rounding; ``per_tensor``: rows of the projections
    that have one scale each, none for a scale a channel; ``input_scale``: of all activations,
    where that is known already.
    """

    scheme: Scheme
    methods: Collection[str]
    zero_points: bool = False
    may_scale: bool = False
    per_tensor: Sequence[int] = ()
    input_scale: float | None = None

    @property
    def grid(self) -> Grid:
        """The numbers of the weight."""
        scheme = self.scheme
        return Grid(dtype=scheme.weight_dtype, group=scheme.group_size, has_zero=self.zero_points)

    @property
    def range(self) -> str:
        """How scales are chosen, one of RANGES."""
        return next((name for name in RANGES if name in self.methods), "absmax")

    @property
    def weight_range(self) -> str:
        """The same for the weight's: where nothing is said, a search where there are few codes."""
        few = self.scheme.weight_dtype == "int4" and not {*RANGES} & {*self.methods}
        return "mse" if few else self.range


def quantise_linear(weight: Floats, x: Floats, recipe: Recipe) -> Quantised:
    """``weight`` [out, in], ``x`` [T, in], T at least 1."""
    grid, scheme = recipe.grid, recipe.scheme
    sample = _spread(x, SAMPLE)
    moved = _moved(weight, x, sample, recipe)
    by = np.ones(1, np.float32) if moved is None else moved
    scaled = weight if moved is None else weight * by
    squares = np.einsum("ti,ti->i", x, x) / by**2
    fit = _fit(scaled, recipe, importance=squares / len(x))
    held = scaled
    if "gptq" in recipe.methods:
        hessian = gram(x)
        hessian /= by[:, None] * by  # powers of two: nothing is rounded
        held = gptq(scaled, hessian, grid, fit)
    arrays: dict[str, Array] = {
        "weight": grid.codes(held, fit),
        "scale": fit.scale if scheme.weight_scale == "group" else fit.scale[:, 0].copy(),
    }
    if fit.zero is not None:
        arrays["zero"] = fit.zero
    if moved is not None:
        arrays["smooth"] = (1 / moved).astype(np.float32)
    fixed = recipe.input_scale
    if scheme.input_scale == "tensor":
        fixed = fixed or max(input_scale(grid, x / by, recipe.range), 1e-30)
        arrays["input_scale"] = np.array([fixed], np.float32)
    exact = product(sample, weight.T)
    error = product(_inputs(sample / by, recipe, fixed), grid.rounded(held, fit).T) - exact
    return Quantised(
        arrays=arrays, error=float(np.sqrt((error**2).mean() / max((exact**2).mean(), 1e-30)))
    )


def _moved(weight: Floats, x: Floats, sample: Floats, recipe: Recipe) -> Floats | None:
    """What the inputs are divided by, and the weight multiplied; None for nothing."""
    kinds = {"smoothquant": smooth_candidates, "awq": awq_candidates}
    names = [name for name in kinds if name in recipe.methods]
    if not recipe.may_scale or not names:
        return None
    grid = recipe.grid

    def outputs(inputs: Floats, weights: Floats) -> Floats:
        fit = grid.fit(weights, recipe.weight_range, (inputs**2).mean(axis=0))
        return product(_inputs(inputs, recipe), grid.rounded(weights, fit).T)

    seen = _spread(weight, OUTPUTS[names[0]])
    return best_scale(sample, seen, kinds[names[0]](x, weight), outputs)


def _spread(rows: Floats, count: int) -> Floats:
    """So many of the rows, or all, at equal distances."""
    spread: Floats = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return spread


def _fit(weight: Floats, recipe: Recipe, importance: Floats) -> Fit:
    """The weight's scales; where projections have one each, their largest."""
    if not recipe.per_tensor:
        return recipe.grid.fit(weight, recipe.weight_range, importance)
    scale = recipe.grid.fit(weight).scale
    start = 0
    for rows in recipe.per_tensor:
        scale[start : start + rows] = scale[start : start + rows].max()
        start += rows
    return Fit(scale=scale)


def _inputs(x: Floats, recipe: Recipe, fixed: float | None = None) -> Floats:
    """Activations as the scheme rounds them."""
    if recipe.scheme.input_scale == "none":
        return x
    if recipe.scheme.input_scale == "token":
        return rounded_input(recipe.grid, x, None)
    return rounded_input(recipe.grid, x, fixed or input_scale(recipe.grid, x, recipe.range))
