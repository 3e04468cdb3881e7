"""How weights and the KV cache are represented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qinfer.core.types.arrays import Array


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one linear's weight and input are represented.

    ``weight_scale`` and ``input_scale``: "none", "channel" (one per output), "token", "tensor",
    "group" (of ``group_size`` inputs) or "block" (of ``group_size`` inputs and outputs). ``parts``:
    the schemes of projections that are fused without having one scheme.
    """

    name: str
    weight_dtype: str
    weight_scale: str = "none"
    input_dtype: str = ""
    input_scale: str = "none"
    group_size: int = 0
    parts: tuple[Scheme, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """A scheme's decision for one model: linear name -> scheme, and why others are left out.

    A linear in ``skipped`` (name -> reason) keeps the model's own precision; its entry in
    ``by_layer`` says which that is. ``kv_cache`` is a dtype, or "" for the model's own precision;
    ``kv_scales`` its static scales, as ``CacheSpec`` has them.
    """

    by_layer: Mapping[str, Scheme]
    kv_cache: str = ""
    kv_scales: Array | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
