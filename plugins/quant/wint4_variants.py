"""Weight-only int4 with larger groups of inputs, and with zero points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qinfer.core.arrays import converted
from qinfer.core.protocols import ExpertLayer, Layer
from qinfer.core.types import Array, LinearSpec, PluginInfo, Scheme
from qinfer.plugins.quant.decoder import DecoderScheme
from qinfer.plugins.quant.layers import build_layer
from qinfer.plugins.quant.wint4 import GROUP, pack_int4


class WInt4Variant(DecoderScheme):
    """int4 weights, a scale for every ``group`` inputs of an output channel, or with 0 for all of
    them; with ``zero_points`` each has a zero point too, so that its numbers need not lie around 0.
    """

    def __init__(self, name: str, *, group: int, zero_points: bool = False) -> None:
        inputs = f"{group} inputs of an output channel" if group else "an output channel"
        said = "scale and zero point" if zero_points else "scale"
        self.info = PluginInfo(
            name=name, kind="quant", api="1.0", summary=f"int4 weights, one {said} for {inputs}"
        )
        self.scheme = Scheme(
            name=name,
            weight_dtype="int4",
            weight_scale="group" if group else "channel",
            group_size=group,
        )
        self.zero_points = zero_points

    def quantise(self, weight: Array) -> dict[str, Array]:
        """Weight [out, in] int8 with values -8 to 7, scale [out, groups] float32, and zero points
        likewise where there are some.
        """
        pack = pack_int4_zero_points if self.zero_points else pack_int4
        return pack(weight, self.scheme.group_size or weight.shape[1])

    def layer(self, spec: LinearSpec, params: Mapping[str, Array]) -> Layer | ExpertLayer:
        """A product with int4 weights."""
        return build_layer(spec, self.scheme, params)

    def refusal(self, spec: LinearSpec) -> str:
        """The head, and layers whose inputs do not make whole groups."""
        group = self.scheme.group_size
        if group and spec.in_features % group:
            return f"{spec.in_features} inputs are no multiple of {group}"
        return super().refusal(spec)


def pack_int4_zero_points(weight: Array, group: int) -> dict[str, Array]:
    """``q = clip(round(w / scale) + zero, -8, 7)`` in each group of inputs: low and high, its least
    and largest weight or 0, become -8 and 7. scale = (high - low) / 15,
    zero = round(-8 - low / scale).

    A group of zeros gets scale 0.
    """
    shape = (weight.shape[0], weight.shape[1] // group)
    scale, zero = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def convert(rows: Array, start: int) -> Array:
        groups = rows.astype(np.float32).reshape(len(rows), -1, group)
        low = np.minimum(groups.min(axis=2), 0)
        span = np.maximum(groups.max(axis=2), 0) - low
        divisor = np.where(span > 0, span / 15, 1)
        around = np.rint(-8 - low / divisor)
        part = slice(start, start + len(rows))
        scale[part], zero[part] = span / 15, around
        codes = np.rint(groups / divisor[:, :, None]) + around[:, :, None]
        return np.clip(codes, -8, 7).reshape(rows.shape)

    return {"weight": converted(weight, "int8", convert), "scale": scale, "zero": zero}


G128 = WInt4Variant("wint4-g128", group=128)
CHANNEL = WInt4Variant("wint4-channel", group=0)
ZERO_POINTS = WInt4Variant("wint4-zp", group=GROUP, zero_points=True)
G128_ZERO_POINTS = WInt4Variant("wint4-g128-zp", group=128, zero_points=True)
CHANNEL_ZERO_POINTS = WInt4Variant("wint4-channel-zp", group=0, zero_points=True)
