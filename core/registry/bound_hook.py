"""One plugin's implementation of one hook: finding it, calling it, checking what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pluggy

from qinfer.core.errors import BrokenPlugin, QinferError
from qinfer.core.registry.contract import explain
from qinfer.core.registry.discovery import PluginRecord
from qinfer.core.specs import PROJECT, SPECS, Plugin

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


def bind_hooks(
    plugins: Sequence[tuple[PluginRecord, Plugin]],
) -> dict[str, tuple[BoundHook, ...]]:
    """Each hook's name with the plugins that implement it.

    Raises BrokenPlugin when two answer a hook that exactly one may answer.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(type("AllHooks", tuple(SPECS.values()), {}))
    for number, (_, plugin) in enumerate(plugins):
        manager.register(plugin, str(number))
    manager.check_pending()
    records = [record for record, _ in plugins]
    return {
        name: _bind(manager, records, name, caller)
        for name, caller in vars(manager.hook).items()
        if not name.startswith("_")
    }


def _bind(
    manager: pluggy.PluginManager,
    records: Sequence[PluginRecord],
    name: str,
    caller: pluggy.HookCaller,
) -> tuple[BoundHook, ...]:
    """Split a hook into one caller per plugin."""
    everyone = manager.get_plugins()
    bound = []
    for implementation in caller.get_hookimpls():
        record = records[int(implementation.plugin_name)]
        alone = manager.subset_hook_caller(name, everyone - {implementation.plugin})
        bound.append(BoundHook(record, name, alone))
    if len(bound) > 1 and caller.spec and caller.spec.opts.get("firstresult"):
        others = " and ".join(hook.record.label for hook in bound[:-1])
        raise bound[-1].record.broken(f"implements {name}, which {others} does already")
    return tuple(bound)
