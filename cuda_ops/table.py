"""The operator table: every operator has one contract and several versions.

A function decorated with ``@operator`` states the contract in its signature and docstring; its
body is the **reference**, in plain Paddle operators, which runs on any device and without a
compiler. Native versions register under the same name, and ``use`` switches the whole table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"


class Operator(Generic[P, R]):
    """An operator: callable, running the version in use."""

    def __init__(self, reference: Callable[P, R]) -> None:
        self.name = reference.__name__
        self.__doc__ = reference.__doc__
        self.versions: dict[str, Callable[P, R]] = {REFERENCE: reference}
        self.run = reference

    @property
    def is_native(self) -> bool:
        """Whether a version other than the reference is in use."""
        return self.run is not self.versions[REFERENCE]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the version in use."""
        return self.run(*args, **kwargs)


TABLE: dict[str, Operator[..., object]] = {}


def operator(reference: Callable[P, R]) -> Operator[P, R]:
    """Enter a function into the table as the reference version of the operator it names."""
    entry = Operator(reference)
    TABLE[entry.name] = entry  # type: ignore[assignment]
    return entry


class _InUse:
    version = REFERENCE


def version_in_use() -> str:
    """What ``use`` was called with last."""
    return _InUse.version


def use(version: str) -> list[str]:
    """Run ``version`` of every operator that has it and the reference of the others.

    Returns the names of the operators left to the reference.
    """
    left = []
    _InUse.version = version
    for entry in TABLE.values():
        entry.run = entry.versions.get(version, entry.versions[REFERENCE])
        if version not in entry.versions:
            left.append(entry.name)
    return left
