"""GPTQ: rounding the inputs' columns one after the other, each error made up for by the next ones.

Frantar et al., arXiv:2210.17323, with act-order: the columns with the largest activations first.
Groups keep the columns they have without reordering, so no index is needed to read the result.

What a column has to make up for is a sum over the errors of those before it, weighed by U of
H = U D U^T, unit upper triangular (LDLQ, Chee et al., arXiv:2307.13304, who show that it is the
same). So the Hessian is factored and never inverted.
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

PANEL = 512
"""Columns of the Hessian that are factored together."""

STRIP = 2048
"""Columns of it that what is left of them is taken from at a time."""


def gptq(weight: Floats, hessian: Floats, grid: Grid, fit: Fit) -> Floats:
    """The weight [out, in] on the grid with the least error of its outputs for inputs x [T, in]
    whose x^T x is ``hessian`` [in, in].
    """
    dead = np.diag(hessian) == 0
    order = np.argsort(-np.diag(hessian), kind="stable")
    shares = _shares(hessian, order)
    group_of = order // (grid.group or weight.shape[1])
    back: Floats = np.empty_like(weight)
    for start in range(0, len(weight), OUTPUTS):
        part = slice(start, start + OUTPUTS)
        wanted = np.ascontiguousarray(weight[part].T[order])  # a column of the weight is a row here
        wanted[dead[order]] = 0
        own = fit.rows(part)
        rounded = [grid.of_group(own, group) for group in range(own.scale.shape[1])]
        back[part, order] = _in_order(wanted, shares, [rounded[group] for group in group_of]).T
    return back


def _in_order(wanted: Floats, shares: Floats, rounded: Sequence[Rounding]) -> Floats:
    """The rows of ``wanted`` [in, out] rounded one after the other by their own of ``rounded``,
    each with its ``shares`` [in, in] of the errors of the rows before it.
    """
    result = np.zeros_like(wanted)  # of rows that are not rounded yet: what they make up for
    for start in range(0, len(wanted), BLOCK):
        end = min(start + BLOCK, len(wanted))
        errors = np.empty((end - start, wanted.shape[1]), np.float32)
        for row in range(start, end):
            done = row - start
            aim = result[row]
            aim += wanted[row]
            aim += shares[row, start:row] @ errors[:done]
            aim[:] = rounded[row](aim)
            np.subtract(wanted[row], aim, out=errors[done])
        if end < len(wanted):
            result[end:] += product(shares[end:, start:end], errors)
    return result


def _shares(hessian: Floats, order: NDArray[np.intp]) -> Floats:
    """U^T [in, in] of H = U D U^T, H being the Hessian with its inputs in another ``order``, damped
    until there is one.

    With J for the reversal of rows or columns, J H J = M M^T makes U = J M diag(M)^-1 J.
    """
    reverse = order[::-1]
    diagonal = np.diag(hessian)[reverse].astype(np.float64)
    diagonal[diagonal == 0] = 1
    damp = DAMP * float(np.mean(diagonal))
    for _ in range(10):
        damped = _reordered(hessian, reverse)
        np.fill_diagonal(damped, diagonal + damp)
        try:
            _factor(damped)
        except np.linalg.LinAlgError:
            damp *= 10
            continue
        damped /= np.diag(damped).copy()
        return np.ascontiguousarray(damped[::-1, ::-1].T, np.float32)
    raise ArithmeticError("the calibration data's Hessian cannot be factored")


def _reordered(hessian: Floats, order: NDArray[np.intp]) -> Doubles:
    """The Hessian with its inputs in another order, in float64; a few rows at a time, as it may
    take gigabytes.
    """
    result = np.empty(hessian.shape, np.float64)
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        result[start : start + BLOCK] = hessian[rows][:, order]
    return result


def _factor(matrix: Doubles) -> None:
    """Put the lower triangular M in the place of M M^T, nothing as large beside it; what is above
    the diagonal is of no use then. Raises LinAlgError where there is no M.
    """
    for start in range(0, len(matrix), PANEL):
        end = min(start + PANEL, len(matrix))
        own = np.linalg.cholesky(matrix[start:end, start:end])
        matrix[start:end, start:end] = own
        panel = product(matrix[end:, start:end], np.linalg.inv(own).T)
        matrix[end:, start:end] = panel
        for strip in range(end, len(matrix), STRIP):
            below = panel[strip - end :]
            matrix[strip:, strip : strip + STRIP] -= product(below, below[:STRIP].T)
