"""Numbers on a grid: int8, int4 and e4m3 by a scale, and how that scale is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TOPS = {"int8": 127.0, "int4": 7.0, "float8_e4m3fn": 448.0}
"""What an absolute maximum is scaled to."""

RANGES = ("absmax", "percentile", "mse")
"""What the largest number on the grid stands for: the absolute maximum, ``PERCENTILE`` of all
magnitudes, or that one of ``SHRINKS`` which makes the least square error.
"""

PERCENTILE = 0.9999

SHRINKS = tuple(1 - 0.025 * step for step in range(17))
"""Shares of the absolute maximum that are tried, down to 0.6."""

LOWEST, LEVELS = -8, 15
"""The least int4 code, and how many are above it: what a group with a zero point spans."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Scales [out, groups] of a weight, and where it has them zero points in codes: a code stands
    for ``(code - zero) * scale``.
    """

    scale: Floats
    zero: Floats | None = None

    def rows(self, part: slice) -> Fit:
        """Those of some rows of the weight."""
        return Fit(scale=self.scale[part], zero=None if self.zero is None else self.zero[part])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One format's numbers; ``group`` is how many inputs share a scale (0: all of them), and with
    ``has_zero`` (int4 only) each group has a zero point.
    """

    dtype: str
    group: int = 0
    has_zero: bool = False

    def fit(self, weight: Floats, by: str = "absmax", importance: Floats | None = None) -> Fit:
        """Scales for a weight [out, in], chosen by one of ``RANGES``; ``mse`` weighs the errors of
        each input by ``importance`` [in].
        """
        tiles = self._tiles(weight)
        low, high = self._bounds(tiles, by)
        fit = self._spanning(low, high)
        if by != "mse":
            return fit
        alike = np.ones(weight.shape[1], np.float32)
        shares = self._tiles((alike if importance is None else importance)[None])
        least = self._errors(tiles, fit, shares)
        for share in SHRINKS[1:]:
            tried = self._spanning(low * np.float32(share), high * np.float32(share))
            errors = self._errors(tiles, tried, shares)
            better, least = errors < least, np.minimum(errors, least)
            zero = fit.zero
            if zero is not None and tried.zero is not None:
                zero = np.where(better, tried.zero, zero)
            fit = Fit(scale=np.where(better, tried.scale, fit.scale), zero=zero)
        return fit

    def rounded(self, weight: Floats, fit: Fit) -> Floats:
        """The nearest weight on the grid."""
        return self._round(self._tiles(weight), fit).reshape(weight.shape)

    def codes(self, weight: Floats, fit: Fit) -> NDArray[Any]:
        """The codes of ``rounded``: int8 (int4 too) or float8_e4m3fn [out, in]."""
        codes = self._codes(self._tiles(weight), fit).reshape(weight.shape)
        return codes.astype(ml_dtypes.float8_e4m3fn if "float8" in self.dtype else np.int8)

    def of_group(self, fit: Fit, group: int) -> Callable[[Floats], Floats]:
        """What rounds a column [out] of one group."""
        zero: Floats | np.float32 = np.float32(0) if fit.zero is None else fit.zero[:, group]
        scale = fit.scale[:, group]
        divisor: Floats = np.where(scale > 0, scale, np.float32(1))

        def rounded(column: Floats) -> Floats:
            result: Floats = (self._held(column / divisor, zero) - zero) * scale
            return result

        return rounded

    def _bounds(self, tiles: Floats, by: str) -> tuple[Floats, Floats]:
        """The least and the largest number to be held, [out, groups] each; 0 lies between."""
        magnitudes = np.abs(tiles)
        top = magnitudes.max(axis=2)
        if by == "percentile":
            held = np.quantile(magnitudes, PERCENTILE, axis=2).astype(np.float32)
            top = np.where(held > 0, held, top)
        if not self.has_zero:
            return -top, top
        return (
            np.maximum(np.minimum(tiles.min(axis=2), 0), -top),
            np.minimum(np.maximum(tiles.max(axis=2), 0), top),
        )

    def _spanning(self, low: Floats, high: Floats) -> Fit:
        if not self.has_zero:
            return Fit(scale=(high / TOPS[self.dtype]).astype(np.float32))
        scale = ((high - low) / LEVELS).astype(np.float32)
        zero = np.rint(LOWEST - low / np.where(scale > 0, scale, 1))
        return Fit(scale=scale, zero=np.clip(zero, LOWEST, TOPS["int4"]).astype(np.float32))

    def _errors(self, tiles: Floats, fit: Fit, shares: Floats) -> Floats:
        errors: Floats = ((self._round(tiles, fit) - tiles) ** 2 * shares).sum(axis=2)
        return errors

    def _tiles(self, weight: Floats) -> Floats:
        return weight.reshape(len(weight), -1, self.group or weight.shape[1])

    def _round(self, values: Floats, fit: Fit) -> Floats:
        codes = self._codes(values, fit)
        if fit.zero is not None:
            codes = codes - fit.zero[:, :, None]
        rounded: Floats = codes * fit.scale[:, :, None]
        return rounded

    def _codes(self, values: Floats, fit: Fit) -> Floats:
        scale = fit.scale[:, :, None]
        zero: Floats | np.float32 = np.float32(0) if fit.zero is None else fit.zero[:, :, None]
        divisor: Floats = np.where(scale > 0, scale, np.float32(1))
        return self._held(values / divisor, zero)

    def _held(self, scaled: Floats, zero: Floats | np.float32) -> Floats:
        """The codes nearest to numbers in units of the scale, as floats."""
        top = TOPS[self.dtype]
        if self.dtype == "float8_e4m3fn":
            held = np.clip(scaled, -top, top).astype(ml_dtypes.float8_e4m3fn)
            return np.asarray(held, np.float32)
        codes: Floats = np.clip(np.rint(scaled) + zero, -top - 1, top)
        return codes


def input_scale(grid: Grid, x: Floats, by: str) -> float:
    """One scale for a whole activation tensor [T, in], chosen by one of ``RANGES``."""
    return float(Grid(dtype=grid.dtype).fit(x.reshape(1, -1), by).scale[0, 0])


def rounded_input(grid: Grid, x: Floats, scale: float | None) -> Floats:
    """Activations as the quantised product sees them: by one scale, or each token by its own."""
    plain = Grid(dtype=grid.dtype)
    if scale is None:
        return plain.rounded(x, plain.fit(x))
    return plain.rounded(x, Fit(scale=np.full((len(x), 1), scale, np.float32)))
