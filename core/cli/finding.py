"""What ``qinfer doctor`` reports, a line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; ``state`` is ok, warning or problem."""

    name: str
    value: str
    state: str = "ok"
    remedy: str = ""


def warning(name: str, value: str, remedy: str) -> Finding:
    """What makes inference worse, not impossible."""
    return Finding(name=name, value=value, state="warning", remedy=remedy)


def problem(name: str, value: str, remedy: str) -> Finding:
    """What keeps inference from working."""
    return Finding(name=name, value=value, state="problem", remedy=remedy)
