"""Numbers on a grid: int8, int4 and e4m3 by a scale, and how that scale is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

TOGETHER = 1 << 17
"""Numbers of a weight that are rounded together, so that they stay in the processor's cache."""

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
        alike = np.ones(weight.shape[1], np.float32)
        shares = self._tiles((alike if importance is None else importance)[None])
        fits = [self._fit(self._tiles(weight[part]), by, shares) for part in _parts(weight)]
        zeros = [fit.zero for fit in fits if fit.zero is not None]
        scale = np.concatenate([fit.scale for fit in fits])
        return Fit(scale=scale, zero=np.concatenate(zeros) if zeros else None)

    def rounded(self, weight: Floats, fit: Fit) -> Floats:
        """The nearest weight on the grid."""
        result: Floats = np.empty(weight.shape, np.float32)
        for part in _parts(weight):
            self._tiles(result)[part] = self._round(self._tiles(weight[part]), fit.rows(part))
        return result

    def codes(self, weight: Floats, fit: Fit) -> NDArray[Any]:
        """The codes of ``rounded``: int8 (int4 too) or float8_e4m3fn [out, in]."""
        held = ml_dtypes.float8_e4m3fn if "float8" in self.dtype else np.int8
        result = np.empty(weight.shape, held)
        for part in _parts(weight):
            self._tiles(result)[part] = self._codes(self._tiles(weight[part]), fit.rows(part))
        return result

    def of_group(self, fit: Fit, group: int) -> Callable[[Floats], Floats]:
        """What rounds a column [out] of one group."""
        zero = None if fit.zero is None else fit.zero[:, group]
        scale = fit.scale[:, group]
        divisor: Floats = np.where(scale > 0, scale, np.float32(1))

        def rounded(column: Floats) -> Floats:
            codes = self._held(column / divisor, zero)
            if zero is not None:
                codes -= zero
            codes *= scale
            return codes

        return rounded

    def _fit(self, tiles: Floats, by: str, shares: Floats) -> Fit:
        low, high = self._bounds(tiles, by)
        fit = self._spanning(low, high)
        if by != "mse":
            return fit
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
        wrong = self._round(tiles, fit)
        wrong -= tiles
        wrong *= wrong
        wrong *= shares
        errors: Floats = wrong.sum(axis=2)
        return errors

    def _tiles(self, weight: NDArray[Any]) -> NDArray[Any]:
        return weight.reshape(len(weight), -1, self.group or weight.shape[1])

    def _round(self, values: Floats, fit: Fit) -> Floats:
        codes = self._codes(values, fit)
        if fit.zero is not None:
            codes -= fit.zero[:, :, None]
        codes *= fit.scale[:, :, None]
        return codes

    def _codes(self, values: Floats, fit: Fit) -> Floats:
        scale = fit.scale[:, :, None]
        divisor: Floats = np.where(scale > 0, scale, np.float32(1))
        return self._held(values / divisor, None if fit.zero is None else fit.zero[:, :, None])

    def _held(self, scaled: Floats, zero: Floats | None) -> Floats:
        """The codes nearest to numbers in units of the scale, as floats, in their place."""
        top = TOPS[self.dtype]
        if self.dtype == "float8_e4m3fn":
            held = np.clip(scaled, -top, top, out=scaled).astype(ml_dtypes.float8_e4m3fn)
            return np.asarray(held, np.float32)
        np.rint(scaled, out=scaled)
        if zero is not None:
            scaled += zero
        return np.clip(scaled, -top - 1, top, out=scaled)


def _parts(weight: NDArray[Any]) -> Iterator[slice]:
    """Rows that are worked on together."""
    rows = max(TOGETHER // weight.shape[1], 1)
    return (slice(start, start + rows) for start in range(0, len(weight), rows))


def input_scale(grid: Grid, x: Floats, by: str) -> float:
    """One scale for a whole activation tensor [T, in], chosen by one of ``RANGES``."""
    return float(Grid(dtype=grid.dtype).fit(x.reshape(1, -1), by).scale[0, 0])


def rounded_input(grid: Grid, x: Floats, scale: float | None) -> Floats:
    """Activations as the quantised product sees them: by one scale, or each token by its own."""
    plain = Grid(dtype=grid.dtype)
    if scale is None:
        return plain.rounded(x, plain.fit(x))
    return plain.rounded(x, Fit(scale=np.full((len(x), 1), scale, np.float32)))
