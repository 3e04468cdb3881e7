"""Quantising one linear from its weight and the inputs that the calibration data give it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from qinfer.core.quantize.gptq import gptq
from qinfer.core.quantize.rounding import Floats, Grid, input_scale, rounded_input
from qinfer.core.quantize.scaling import awq_candidates, best_scale, smooth_candidates
from qinfer.core.types import Array, Scheme

SAMPLE = 512
"""Tokens that scales are searched on, and errors measured, spread over the calibration data."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Arrays as ``core.stored`` names them, and the outputs' relative error: the square root of
    their mean square error over their mean square.
    """

    arrays: dict[str, Array]
    error: float


def quantise_linear(
    weight: Floats,
    x: Floats,
    scheme: Scheme,
    methods: Collection[str],
    *,
    may_scale: bool,
    per_tensor: Sequence[int] = (),
) -> Quantised:
    """``weight`` [out, in], ``x`` [T, in]; ``may_scale``: inputs may be scaled before rounding;
    ``per_tensor``: rows of the projections that have one scale each, none for a scale a channel.
    """
    grid = Grid(dtype=scheme.weight_dtype, group=scheme.group_size)
    sample = x[np.linspace(0, len(x) - 1, min(SAMPLE, len(x))).astype(int)]
    search = "mse" in methods

    def outputs(inputs: Floats, weights: Floats) -> Floats:
        held = grid.rounded(weights, grid.scales(weights))
        product: Floats = _inputs(inputs, scheme, grid, search) @ held.T
        return product

    moved: Floats | None = None
    kinds = {"smoothquant": smooth_candidates, "awq": awq_candidates}
    for name in kinds.keys() & set(methods) if may_scale else ():
        moved = best_scale(sample, weight, kinds[name](x, weight), outputs)
    by = np.ones(1, np.float32) if moved is None else moved
    scaled, eased = weight * by, x / by
    # A search for the scales helps where there are few codes.
    finer = search or ("absmax" not in methods and scheme.weight_dtype == "int4")
    scale = grid.scales(scaled, search=finer and not per_tensor)
    start = 0
    for rows in per_tensor:
        scale[start : start + rows] = scale[start : start + rows].max()
        start += rows
    held = gptq(scaled, eased, grid, scale) if "gptq" in methods else scaled
    arrays: dict[str, Array] = {
        "weight": grid.codes(held, scale),
        "scale": scale if scheme.weight_scale == "group" else scale[:, 0].copy(),
    }
    if moved is not None:
        arrays["smooth"] = (1 / moved).astype(np.float32)
    if scheme.input_scale == "tensor":
        fixed = max(input_scale(grid, eased, search=search), 1e-30)
        arrays["input_scale"] = np.array([fixed], np.float32)
    got = _inputs(sample / by, scheme, grid, search, arrays.get("input_scale"))
    exact = sample @ weight.T
    error = got @ grid.rounded(held, scale).T - exact
    return Quantised(
        arrays=arrays, error=float(np.sqrt((error**2).mean() / max((exact**2).mean(), 1e-30)))
    )


def _inputs(
    x: Floats, scheme: Scheme, grid: Grid, search: bool, fixed: Array | None = None
) -> Floats:
    """Activations as the scheme rounds them."""
    if scheme.input_scale == "none":
        return x
    if scheme.input_scale == "token":
        return rounded_input(grid, x, None)
    scale = input_scale(grid, x, search=search) if fixed is None else float(fixed[0])
    return rounded_input(grid, x, scale)
