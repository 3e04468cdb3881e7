"""GPTQ: rounding the inputs' columns one after the other, each error made up for by the next ones.

Frantar et al., arXiv:2210.17323, with act-order: the columns with the largest activations first.
Groups keep the columns they have without reordering, so no index is needed to read the result.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qinfer.core.quantize.rounding import Fit, Floats, Grid

BLOCK = 128
"""Columns whose errors are collected before the rest of the matrix is updated."""

DAMP = 0.05
"""Share of the mean diagonal added to the Hessian's, so that it can be inverted, and that it fits
more than the calibration data: between 0.03 and 0.1 the demo's error on other texts is least.
"""


def gptq(weight: Floats, x: Floats, grid: Grid, fit: Fit) -> Floats:
    """The weight [out, in] on the grid with the least error of its outputs for inputs like ``x``
    [T, in].
    """
    hessian = (x.T @ x).astype(np.float64)
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    order = np.argsort(-np.diag(hessian), kind="stable")
    upper = _inverse_factor(hessian[np.ix_(order, order)])
    group_of = order // (grid.group or weight.shape[1])
    left = np.ascontiguousarray(weight.T[order])  # a column of the weight is a row here
    left[dead[order]] = 0
    result = np.empty_like(left)
    rounded = [grid.of_group(fit, group) for group in range(fit.scale.shape[1])]
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = np.empty((end - start, left.shape[1]), np.float32)
        for column in range(start, end):
            result[column] = rounded[group_of[column]](left[column])
            error = errors[column - start]
            np.subtract(left[column], result[column], out=error)
            error /= upper[column, column]
            left[column + 1 : end] -= upper[column, column + 1 : end, None] * error
        left[end:] -= upper[start:end, end:].T @ errors
    back: Floats = np.empty_like(weight)
    back[:, order] = result.T
    return back


def _inverse_factor(hessian: NDArray[np.float64]) -> Floats:
    """The upper factor U of the inverse, H^-1 = U^T U, damped until that can be done."""
    damp = DAMP * float(np.mean(np.diag(hessian)))
    for _ in range(10):
        damped = hessian + damp * np.eye(len(hessian))
        try:
            factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError:
            damp *= 10
            continue
        return np.ascontiguousarray(factor, np.float32)
    raise ArithmeticError("the calibration data's Hessian cannot be inverted")
