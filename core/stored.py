"""What a checkpoint that is quantised already holds, as the plugin that reads its format says it.

Several tensors of such a checkpoint (codes, scales, zero points) stand for one plain weight. A
reader gives, for each weight, its scheme and a function that loads it in these arrays:

name         array
weight       [out, in]: int8 codes (int4 ones too, -8 to 7), float8_e4m3fn, or floats
scale        float32 [out], or [out, groups], or one for each block of a float8 weight
zero         float32 [out, groups]: the zero point, in codes as ``weight`` counts them
input_scale  float32 [1]: activations have this scale, found by calibration
smooth       float32 [in] and
shift        float32 [in]: the input is (x + shift) * smooth before it is quantised
order        int64 [in]: column i of ``weight`` belongs to input order[i]
bias         float32 [out], for a layer whose model has none

``input_scale``, ``smooth``, ``shift`` and ``order`` belong to the input; everything else has a row
for each output, so that projections can be fused by putting rows below each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qinfer.core.types import Array, Scheme

OF_THE_INPUT = frozenset({"input_scale", "smooth", "shift", "order"})


@dataclass(frozen=True, kw_only=True)
class StoredLinear:
    """One quantised weight [out, in] = ``shape``: how it is represented, the tensors it is made
    of, and a function that reads them. That raises BadCheckpoint naming a tensor that is wrong.
    """

    scheme: Scheme
    shape: tuple[int, int]
    tensors: tuple[str, ...]
    load: Callable[[], Mapping[str, Array]]


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """The quantised weights of a checkpoint, by the name that the plain one would have
    (``….q_proj.weight``); ``unused`` are globs of tensors that it may hold besides, ``kv_cache``
    the dtype it wants keys and values in, "" for the model's own precision, and ``kv_scales`` the
    static scales for that, as ``CacheSpec`` has them.
    """

    linears: Mapping[str, StoredLinear]
    unused: tuple[str, ...] = ()
    kv_cache: str = ""
    kv_scales: Array | None = None
