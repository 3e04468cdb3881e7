"""The rotary settings of config.json: ``rope_theta`` and ``rope_scaling``, or both in
``rope_parameters``, as transformers 5 writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from qinfer.core.config.check import ConfigChecker, show
from qinfer.core.types import RotaryScaling

Kind = Literal["linear", "dynamic", "yarn"]

YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", *YARN),
}
"""Kind of scaling -> the settings it understands."""


def read_rotary(check: ConfigChecker, positions: int) -> tuple[float, RotaryScaling | None]:
    """The base, and the scaling if there is one; ``positions`` is max_position_embeddings."""
    found = _gather(check)
    place, base = found.pop("rope_theta", ("rope_theta", check.defaults.get("rope_theta")))
    theta = check.number(place, base, 1e12)
    _, kind = found.pop("rope_type", ("", "default"))
    where, whole = found.pop("partial_rotary_factor", ("", 1))
    if whole != 1:
        check.add(f"{where} = {show(whole)}: only whole heads are rotated")
    if not isinstance(kind, str) or kind not in SETTINGS:
        check.add(f"the rotary scaling {show(kind)} is not known: only {', '.join(SETTINGS)} are")
        return theta, None
    for name, (place, value) in found.items():
        if name not in SETTINGS[kind]:
            check.add(f"{place} = {show(value)}: not understood with rope_type {kind}")
    if kind == "yarn" and theta <= 1:
        check.add(f"rope_theta: must be above 1 with rope_type yarn, found {theta:g}")
    values = {name: value for name, (_, value) in found.items() if name in SETTINGS[kind]}
    if kind == "default":
        return theta, None
    return theta, _scaling(check, kind, values, positions)  # type: ignore[arg-type]


def _gather(check: ConfigChecker) -> dict[str, tuple[str, Any]]:
    """Setting -> (where it stands, its value), from all the places; null counts as absent."""
    found: dict[str, tuple[str, Any]] = {}
    places = [("rope_theta", check.name("rope_theta"), check.written("rope_theta"))]
    for key in ("rope_parameters", "rope_scaling"):
        part = check.written(key)
        if part is not None and not isinstance(part, Mapping):
            check.add(f"{key}: must be an object, found {show(part)}")
            continue
        for name, value in (part or {}).items():
            setting = "rope_type" if name == "type" else str(name)
            places.append((setting, f"{key}.{show(name)}", value))
    for setting, place, value in places:
        if value is None:
            continue
        before = found.setdefault(setting, (place, value))
        if before[1] != value:
            check.add(
                f"{before[0]} = {show(before[1])} and {place} = {show(value)}: "
                "they contradict each other"
            )
    return found


def _scaling(
    check: ConfigChecker, kind: Kind, values: Mapping[str, Any], positions: int
) -> RotaryScaling | None:
    def number(name: str, fallback: float | None) -> float:
        return check.number(f"rotary {name}", values.get(name, fallback), 2.0**30)

    original = values.get("original_max_position_embeddings", positions)
    if isinstance(original, bool) or not isinstance(original, int) or original < 1:
        check.add(f"original_max_position_embeddings: must be a length, found {show(original)}")
        return None
    factor = number("factor", positions / original if kind == "yarn" else None)
    if 0 < factor < 1:
        check.add(f"rotary factor: must be at least 1, found {factor:g}")
    truncate = values.get("truncate", True)
    if not isinstance(truncate, bool):
        check.add(f"rotary truncate: must be true or false, found {show(truncate)}")
    if kind != "yarn" or factor < 1 or check.problems:
        return RotaryScaling(kind=kind, factor=factor, original=original)
    return RotaryScaling(
        kind=kind,
        factor=factor,
        original=original,
        attention_factor=number("attention_factor", _attention_factor(check, values, factor)),
        beta_fast=number("beta_fast", 32),
        beta_slow=number("beta_slow", 1),
        truncate=truncate is True,
    )


def _attention_factor(check: ConfigChecker, values: Mapping[str, Any], factor: float) -> float:
    """What transformers takes where none is given."""

    def magnitude(name: str) -> float:
        scale = check.number(f"rotary {name}", values.get(name, 1), 1e3)
        return 0.1 * scale * math.log(factor) + 1

    if values.get("mscale") and values.get("mscale_all_dim"):
        return magnitude("mscale") / magnitude("mscale_all_dim")
    return 0.1 * math.log(factor) + 1
