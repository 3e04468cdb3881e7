"""Layers as the schemes build them, on the card, and what float64 makes of their products."""

import ml_dtypes
import numpy as np

from gpu.tools import card, rounded
from ops import reference64
from qinfer.cuda_ops import ops

E4M3 = ml_dtypes.float8_e4m3fn
FORMATS = ["plain", "int8", "e4m3", "int4"]


class Layer:
    """Shows how its weight is held, and must not be called."""

    def __init__(self, held):
        self.held = held

    def __call__(self, x):
        raise AssertionError("the parts ran")


def numbers_of(format_, width, out, rng, dtype="bfloat16"):
    """A weight's codes [out, in] and its scales, None where it has none."""
    scale = rng.uniform(1e-3, 1e-2, out).astype(np.float32)
    if format_ == "plain":
        return rounded(rng.normal(size=(out, width)) / 20, dtype), None
    if format_ == "int8":
        return rng.integers(-127, 128, (out, width)).astype(np.int8), scale
    if format_ == "e4m3":
        return (rng.normal(size=(out, width)) * 40).clip(-448, 448).astype(E4M3), scale
    codes = rng.integers(-8, 8, (out, width)).astype(np.int8)
    return codes, rng.uniform(1e-2, 1e-1, (out, width // 64)).astype(np.float32)


def layer_with(format_, codes, scale, bias):
    """The layer on the card."""
    scales, bias = (None if part is None else card(part) for part in (scale, bias))
    weight, out = card(codes), len(codes)
    if format_ == "int4":
        weight, scales = ops.arrange_int4(weight, scales)
    return Layer(ops.Held(format=format_, weight=weight, scale=scales, bias=bias, out=out))


def layer_of(format_, width, out, rng, *, dtype="bfloat16", has_bias=True, spoilt=None):
    """A layer, its weight [out, in] and its bias [out] in float64. Channel ``spoilt`` has NaN,
    or a scale of it.
    """
    bias = rounded(rng.normal(size=out), dtype)
    codes, scale = numbers_of(format_, width, out, rng, dtype)
    if spoilt is not None:
        (codes if scale is None else scale)[spoilt] = np.nan
    wide = codes.astype(np.float64)
    if scale is not None:
        wide *= np.repeat(scale, 64, axis=1) if format_ == "int4" else scale[:, None]
    layer = layer_with(format_, codes, scale, bias if has_bias else None)
    return layer, wide, bias.astype(np.float64) * has_bias


def bare(layer, x, dtype="bfloat16"):
    """The product of x [T, in] with a layer's weight by the operator of its format."""
    h = layer.held
    if h.format == "plain":
        return ops.linear(x, h.weight, h.bias, dtype, h.out)
    if h.format == "int4":
        return ops.linear_int4(x, h.weight, h.scale, h.bias, h.out)
    product = ops.linear_int8 if h.format == "int8" else ops.linear_fp8
    return product(x, h.weight, h.scale, h.bias)


def coarse(x, largest=448, whole=None):
    """Rows in codes of e4m3, of int8 if their ``largest`` is 127, with the step of ``whole``, their
    own if None. In float32, as steps are: quotients fall halfway between two codes often enough
    to show.
    """
    x, whole = (y.astype(np.float32) for y in (x, x if whole is None else whole))
    step = np.abs(whole).max(axis=1, keepdims=True) / np.float32(largest)
    step = np.maximum(step, np.float32(1e-30))
    places = np.clip(x / step, -largest, largest)
    return (np.rint(places) if largest == 127 else places.astype(E4M3)).astype(np.float64) * step


def normed(x, weight, format_, dtype="bfloat16"):
    """What a norm may become before a product. In codes of e4m3 it is rounded to 16 bits first,
    with its row's factor or before that, when the step is that of what is not rounded yet. Which of
    the two it is decides for some numbers about the code, and codes are 1/16 apart.
    """
    exact = reference64.rms_norm(x, weight, 1e-6)
    if format_ != "e4m3":
        return [exact]
    factor = (np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-6) ** -0.5
    early = x.astype(np.float64) * weight
    return [coarse(rounded(exact, dtype)), coarse(rounded(early, dtype), whole=early) * factor]


def gated(y):
    """silu of the first half times the second."""
    gate, up = np.split(y, 2, axis=1)
    return gate / (1 + np.exp(-gate)) * up
