"""Compiled operators, and what an exported program needs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

NEVER_BUILT = "never built before"
"""The ``reason`` of an OperatorBuild of which there is not even an old or a damaged one."""


@dataclass(frozen=True, kw_only=True)
class OperatorBuild:
    """A backend's compiled operators: the library, whether it is there, and what makes it.

    ``build`` compiles unless that has been done, with True also then. It reports on stderr and
    raises Unsupported with the compiler's words.

    ``name`` says which processors they are for, and ``lacks`` what this one does not have of that.
    ``portable`` are those that can be built for other machines; ``loaded`` says in a line which of
    all these a run here takes, and why, where one is built.
    """

    library: Path
    is_built: bool
    build: Callable[[bool], Path]
    reason: str = ""
    """Why it has to be made, where that is known."""
    name: str = "native"
    lacks: tuple[str, ...] = ()
    portable: tuple[OperatorBuild, ...] = ()
    loaded: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportNeeds:
    """What an exported program needs where it runs: a version of the operators ("reference" needs
    nothing compiled), and facts about them that must be the same there.
    """

    operators: str
    facts: Mapping[str, str] = field(default_factory=dict)
