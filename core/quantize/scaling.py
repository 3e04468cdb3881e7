"""Moving difficulty between activations and weights: x W = (x / s) (s W), for the best s.

SmoothQuant (arXiv:2211.10438) evens out activations that are rounded; AWQ (arXiv:2306.00978)
protects the weights of inputs that are large. Both try several strengths and keep the one whose
outputs are nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qinfer.core.quantize.rounding import Floats

Outputs = Callable[[Floats, Floats], Floats]
"""The quantised product of an input [T, in] and a weight [out, in]."""

SMALL = np.float32(1e-5)


def smooth_candidates(x: Floats, weight: Floats) -> Iterator[Floats]:
    """SmoothQuant's s = max|x|^a / max|W|^(1-a) for strengths a from 0.3 to 0.9."""
    inputs = np.maximum(np.abs(x).max(axis=0), SMALL)
    columns = np.maximum(np.abs(weight).max(axis=0), SMALL)
    for strength in np.arange(0.3, 0.91, 0.05, dtype=np.float32):
        yield _centred(inputs**strength / columns ** (1 - strength))


def awq_candidates(x: Floats, weight: Floats) -> Iterator[Floats]:
    """AWQ's s = mean|x|^a / mean|W|^(1-a) for strengths a from 0.05 to 1."""
    inputs = np.maximum(np.abs(x).mean(axis=0), SMALL)
    columns = np.maximum(np.abs(weight).mean(axis=0), SMALL)
    for strength in np.arange(0.05, 1.01, 0.05, dtype=np.float32):
        yield _centred(inputs**strength / columns ** (1 - strength))


def best_scale(
    x: Floats, weight: Floats, candidates: Iterator[Floats], outputs: Outputs
) -> Floats | None:
    """The s [in] with the least square error of the outputs, None where no s is better than 1."""
    exact = x @ weight.T
    least, best = float(((outputs(x, weight) - exact) ** 2).sum()), None
    tried: set[bytes] = {np.ones_like(x[0]).tobytes()}
    for scale in candidates:
        if scale.tobytes() in tried:
            continue
        tried.add(scale.tobytes())
        error = float(((outputs(x / scale, weight * scale) - exact) ** 2).sum())
        if error < least:
            least, best = error, scale
    return best


def _centred(scale: Floats) -> Floats:
    """Scaled so that the largest and the smallest are equally far from 1, and the nearest powers of
    two within 2^13 of it: moving those into a norm or a scale rounds nothing.
    """
    exponents = np.log2(scale.astype(np.float64))
    middle = (exponents.max() + exponents.min()) / 2
    centred: Floats = np.exp2(np.clip(np.rint(exponents - middle), -13, 13)).astype(np.float32)
    return centred
