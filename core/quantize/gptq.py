"""GPTQ: rounding the inputs' columns one after the other, each error made up for by the next ones.

Frantar et al., arXiv:2210.17323, with act-order: the columns with the largest activations first.
Groups keep the columns they have without reordering, so no index is needed to read the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.quantize.products import product
from qinfer.core.quantize.rounding import Fit, Floats, Grid

Doubles = NDArray[np.floating[Any]]
Rounding = Callable[[Floats], Floats]

BLOCK = 128
"""Columns whose errors are collected before the rest of the matrix is updated."""

OUTPUTS = 2048
"""Rows of the weight that are worked on together: they do not depend on each other, and a block's
errors stay in the processor's cache."""

DAMP = 0.05
"""Share of the mean diagonal added to the Hessian's, so that it can be inverted, and that it fits
more than the calibration data: between 0.03 and 0.1 the demo's error on other texts is least, for
integers and e4m3 alike.
"""

LEAST = 128
"""Size of a triangular matrix that is inverted as a whole."""


def gptq(weight: Floats, hessian: Floats, grid: Grid, fit: Fit) -> Floats:
    """The weight [out, in] on the grid with the least error of its outputs for inputs x [T, in]
    whose x^T x is ``hessian`` [in, in].
    """
    dead = np.diag(hessian) == 0
    order = np.argsort(-np.diag(hessian), kind="stable")
    lower = _inverse_factor(hessian, order)
    group_of = order // (grid.group or weight.shape[1])
    back: Floats = np.empty_like(weight)
    for start in range(0, len(weight), OUTPUTS):
        part = slice(start, start + OUTPUTS)
        left = np.ascontiguousarray(weight[part].T[order])  # a column of the weight is a row here
        left[dead[order]] = 0
        own = fit.rows(part)
        rounded = [grid.of_group(own, group) for group in range(own.scale.shape[1])]
        back[part, order] = _in_order(left, lower, [rounded[group] for group in group_of]).T
    return back


def _in_order(left: Floats, lower: Floats, rounded: Sequence[Rounding]) -> Floats:
    """The rows of ``left`` [in, out] rounded one after the other by their own of ``rounded``;
    ``left`` is used up.
    """
    result = np.empty_like(left)
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for row in range(start, end):
            done = row - start
            left[row] -= lower[row, start:row] @ errors[:done]
            result[row] = rounded[row](left[row])
            np.subtract(left[row], result[row], out=errors[done])
            errors[done] /= lower[row, row]
        if end < len(left):
            left[end:] -= product(lower[end:, start:end], errors)
    return result


def _inverse_factor(hessian: Floats, order: NDArray[np.intp]) -> Floats:
    """The lower L of the inverse of the Hessian with its inputs in another ``order``,
    H^-1 = L L^T, damped until that can be done.

    With J for the reversal of rows or columns, J H J = M M^T makes L = (J M^-1 J)^T.
    """
    reverse = order[::-1]
    factor = _factor(hessian[np.ix_(reverse, reverse)])
    _invert(factor)
    return np.ascontiguousarray(factor[::-1, ::-1].T, np.float32)


def _factor(hessian: Floats) -> Doubles:
    """The lower M of the damped Hessian, M M^T."""
    damped = hessian.astype(np.float64)
    diagonal = np.where(np.diag(damped) == 0, 1, np.diag(damped))
    damp = DAMP * float(np.mean(diagonal))
    for _ in range(10):
        np.fill_diagonal(damped, diagonal + damp)
        try:
            factor: Doubles = np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            damp *= 10
            continue
        return factor
    raise ArithmeticError("the calibration data's Hessian cannot be inverted")


def _invert(lower: Doubles) -> None:
    """Put the inverse of a lower triangular matrix in its place, by its halves: all but the least
    are products.
    """
    if len(lower) <= LEAST:
        lower[:] = np.tril(np.linalg.inv(lower))
        return
    half = len(lower) // 2
    first, below, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert(first)
    _invert(last)
    below[:] = -product(last, product(below, first))
