"""Whether an imported plugin keeps the contract that core/specs.py states."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, cast

import pluggy

from qinfer.core.registry.discovery import PluginRecord
from qinfer.core.specs import PROJECT, REQUIRED, SPECS, Plugin
from qinfer.core.types import API_VERSION, PluginInfo


def explain(error: BaseException) -> str:
    """An exception's type and text on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def hook_names(kind: str) -> list[str]:
    """The hooks that a plugin of that kind may implement."""
    spec = SPECS[kind]
    return [name for name in dir(spec) if hasattr(getattr(spec, name), f"{PROJECT}_spec")]


def check_contract(record: PluginRecord, plugin: Any) -> Plugin:
    """Give ``plugin`` back when it fits its record, this core's API and its kind's hooks.

    Raises BrokenPlugin saying which of them it breaks, and how.
    """
    try:
        info = plugin.info
    except Exception as error:
        raise record.broken(f'has no usable attribute "info": {explain(error)}') from error
    if not isinstance(info, PluginInfo):
        raise record.broken(f'has an "info" that is {info!r} where a PluginInfo is needed')
    _check_api(record, info.api)
    for field in ("kind", "name"):
        said, listed = getattr(info, field), getattr(record, field)
        if said != listed:
            raise record.broken(f"says in its info {field}={said!r}, its entry point {listed!r}")
    _check_hooks(record, plugin)
    return cast(Plugin, plugin)


def _check_api(record: PluginRecord, api: str) -> None:
    """Same major, and a minor that this core has reached."""
    try:
        major, minor = (int(part) for part in api.split("."))
    except (AttributeError, ValueError):
        raise record.broken(f'says api={api!r}; it must be "major.minor"') from None
    core_major, core_minor = (int(part) for part in API_VERSION.split("."))
    if major == core_major and minor <= core_minor:
        return
    side = record.dist if major < core_major else "qinfer-paddle"
    raise record.broken(
        f"speaks plugin API {api}, this qinfer speaks {API_VERSION}",
        f"Upgrade {side}: pip install --upgrade {side}",
    )


def _check_hooks(record: PluginRecord, plugin: Any) -> None:
    """Every hook is marked, known, called with known arguments, and the required ones are there."""
    names = hook_names(record.kind)
    for name in names:
        method = getattr(plugin, name, None)
        marks = (f"{PROJECT}_impl", f"{PROJECT}_spec")  # the latter: inherited from the spec
        if inspect.isroutine(method) and not any(hasattr(method, mark) for mark in marks):
            raise record.broken(f'defines "{name}" without @hookimpl, so it would never be called')
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(SPECS[record.kind])
    try:
        manager.register(plugin, record.reference)
        manager.get_plugins()  # pluggy keeps plugins in sets: one without a hash fails here
        callers = manager.get_hookcallers(plugin) or []
    except Exception as error:
        raise record.broken(f"breaks the hook contract: {explain(error)}") from error
    unknown = [caller.name for caller in callers if not caller.has_spec()]
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(names)}"
        why = f'marks "{unknown[0]}" with @hookimpl, which no {record.kind} plugin has; {hint}'
        raise record.broken(why) from error
    implemented = {caller.name for caller in callers}
    missing = [name for name in REQUIRED[record.kind] if name not in implemented]
    if missing:
        raise record.broken(f"does not implement the required {', '.join(missing)}")
