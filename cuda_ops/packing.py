"""Quantising a weight where it will be used, for devices that do it faster than the processor."""

from __future__ import annotations

import paddle
from paddle import Tensor

from qinfer.cuda_ops.linear import E4M3_MAX, INT4_GROUP
from qinfer.cuda_ops.table import operator

LARGEST = {"int8": 127.0, "int4": 7.0, "float8_e4m3fn": E4M3_MAX}
"""Dtype -> the code of a channel's or group's largest weight."""


@operator
def quantise(weight: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """A weight [out, in] as codes of ``dtype`` and their scales, float32.

    int8 and float8_e4m3fn: a scale [out], the channel's absolute maximum / 127 or / 448. int4, in
    int8 codes -7 to 7: a scale [out, in / 64], the group's absolute maximum / 7. Integers are
    rounded half away from zero, e4m3 to nearest even; where all is 0 so is the scale.
    """
    largest, out = LARGEST[dtype], weight.shape[0]
    group = INT4_GROUP if dtype == "int4" else weight.shape[1]
    rows = weight.astype("float32").reshape([out, -1, group])
    most = paddle.amax(paddle.abs(rows), axis=-1, keepdim=True)
    scaled = rows * (largest / paddle.where(most > 0, most, paddle.ones_like(most)))
    if dtype == "float8_e4m3fn":
        codes = scaled.clip(-largest, largest).astype(dtype)
    else:
        away = paddle.trunc(scaled + 0.5 * paddle.sign(scaled))
        codes = away.clip(-largest, largest).astype("int8")
    scale = (most / largest).reshape([out, -1] if dtype == "int4" else [out])
    return codes.reshape(weight.shape), scale
