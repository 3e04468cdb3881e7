"""Numbers on a grid: int8, int4 and e4m3 by a scale, and scales that make the least error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TOPS = {"int8": 127.0, "int4": 7.0, "float8_e4m3fn": 448.0}
"""What an absolute maximum is scaled to."""

SHRINKS = tuple(1 - 0.025 * step for step in range(17))
"""Shares of the absolute maximum that are tried as the largest number, down to 0.6."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One format's numbers; ``group`` is how many inputs share a scale (0: all of them)."""

    dtype: str
    group: int = 0

    def scales(self, weight: Floats, *, search: bool = False) -> Floats:
        """[out, groups] for a weight [out, in]: the absolute maximum, or with ``search`` that share
        of it which makes the least square error.
        """
        tiles = self._tiles(weight)
        absmax = np.abs(tiles).max(axis=2)
        chosen: Floats = (absmax / TOPS[self.dtype]).astype(np.float32)
        if not search:
            return chosen
        best = np.full(absmax.shape, np.inf, np.float32)
        for share in SHRINKS:
            scale: Floats = (absmax * share / TOPS[self.dtype]).astype(np.float32)
            error = ((self._round(tiles, scale[:, :, None]) - tiles) ** 2).sum(axis=2)
            better = error < best
            best, chosen = np.where(better, error, best), np.where(better, scale, chosen)
        return chosen

    def rounded(self, weight: Floats, scale: Floats) -> Floats:
        """The nearest weight on the grid; scale [out, groups]."""
        return self._round(self._tiles(weight), scale[:, :, None]).reshape(weight.shape)

    def codes(self, weight: Floats, scale: Floats) -> NDArray[Any]:
        """What ``rounded`` is a multiple of: int8 (int4 too) or float8_e4m3fn [out, in]."""
        codes = self._codes(self._tiles(weight), scale[:, :, None]).reshape(weight.shape)
        return codes.astype(ml_dtypes.float8_e4m3fn if "float8" in self.dtype else np.int8)

    def _tiles(self, weight: Floats) -> Floats:
        return weight.reshape(len(weight), -1, self.group or weight.shape[1])

    def _round(self, values: Floats, scale: Floats) -> Floats:
        rounded: Floats = self._codes(values, scale) * scale
        return rounded

    def _codes(self, values: Floats, scale: Floats) -> Floats:
        scaled = values / np.where(scale > 0, scale, 1)
        top = TOPS[self.dtype]
        if self.dtype == "float8_e4m3fn":
            held = np.clip(scaled, -top, top).astype(ml_dtypes.float8_e4m3fn)
            return np.asarray(held, np.float32)
        codes: Floats = np.clip(np.rint(scaled), -top - 1, top)
        return codes


def input_scale(grid: Grid, x: Floats, *, search: bool) -> float:
    """One scale for a whole activation tensor [T, in], by absolute maximum or least error."""
    return float(Grid(dtype=grid.dtype).scales(x.reshape(1, -1), search=search)[0, 0])


def rounded_input(grid: Grid, x: Floats, scale: float | None) -> Floats:
    """Activations as the quantised product sees them: by one scale, or each token by its own."""
    plain = Grid(dtype=grid.dtype)
    if scale is None:
        return plain.rounded(x, plain.scales(x))
    return plain.rounded(x, np.full((len(x), 1), scale, np.float32))
