"""One plugin's implementation of one hook: calls it and checks what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from qinfer.core.errors import BrokenPlugin, QinferError
from qinfer.core.registry.contract import explain
from qinfer.core.registry.discovery import PluginRecord

_T = TypeVar("_T")


class BoundHook:
    """One plugin's implementation of one hook, so that a failure can be laid at its door."""

    def __init__(self, record: PluginRecord, name: str, call: Callable[..., Any]) -> None:
        self.record, self.name, self.call = record, name, call

    def __call__(self, **arguments: Any) -> Any:
        """The raw result. A QinferError passes; raises BrokenPlugin for any other failure."""
        try:
            return self.call(**arguments)
        except QinferError:
            raise
        except (Exception, SystemExit) as error:
            why = f"failed in {self.name}: {explain(error)}"
            raise self.record.broken(why) from error

    def wrong(self, what: str) -> BrokenPlugin:
        """The error for a wrong result: "returned from HOOK WHAT"."""
        return self.record.broken(f"returned from {self.name} {what}")

    def typed(self, expected: type[_T], **arguments: Any) -> _T:
        """The result, which must be an ``expected``."""
        value = self(**arguments)
        if not isinstance(value, expected):
            raise self.wrong(f"{describe(value)} where {expected.__name__} is needed")
        return value

    def items(self, expected: type[_T], **arguments: Any) -> Sequence[_T]:
        """The result, which must be a list or tuple of ``expected``."""
        values = self(**arguments)
        if not isinstance(values, (list, tuple)):
            raise self.wrong(
                f"{describe(values)} where a sequence of {expected.__name__} is needed"
            )
        for index, value in enumerate(values):
            if not isinstance(value, expected):
                raise self.wrong(
                    f"{describe(value)} at [{index}] where {expected.__name__} is needed"
                )
        return values

    def callables(self, *methods: str, **arguments: Any) -> Any:
        """The result, whose ``methods`` must be callable."""
        value = self(**arguments)
        for method in methods:
            if not callable(getattr(value, method, None)):
                raise self.wrong(f"{describe(value)}, which has no method {method}")
        return value


def describe(value: Any) -> str:
    """What a value is, for messages."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
