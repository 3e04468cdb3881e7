"""Which plugins are installed: read from packaging metadata, importing none of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import (
    Distribution,
    EntryPoint,
    EntryPoints,
    PackageNotFoundError,
    distribution,
    distributions,
)

from qinfer.core.errors import BrokenPlugin
from qinfer.core.specs import GROUPS


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """An installed plugin, as its distribution's metadata tells it.

    ``aliases`` are further names; ``reads`` the model_types and architectures in config.json for
    which a model plugin is chosen by itself; ``value`` is the object reference "module:attribute".
    """

    kind: str
    name: str
    dist: str
    version: str
    value: str
    entry_point: EntryPoint
    aliases: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """The unambiguous name, "dist:name"."""
        return f"{self.dist}:{self.name}"

    @property
    def label(self) -> str:
        """How error messages call this plugin."""
        return f'{self.kind} plugin "{self.name}" ({self.dist} {self.version})'

    def broken(self, why: str, remedy: str = "") -> BrokenPlugin:
        """The error that blames this plugin: "LABEL WHY", and what to do about it."""
        fallback = f"Upgrade or remove {self.dist}, or select another {self.kind} plugin."
        return BrokenPlugin(f"{self.label} {why}", remedy=remedy or fallback)


@dataclass(frozen=True, kw_only=True)
class Installed:
    """All plugins found, sorted by kind and name, and a line for each damaged distribution."""

    plugins: tuple[PluginRecord, ...]
    damaged: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[PluginRecord, ...]:
        """The plugins of one kind."""
        return tuple(record for record in self.plugins if record.kind == kind)


def normalise(dist: str) -> str:
    """A distribution's name as packaging compares it: lower case, "-" for runs of "-_."."""
    return re.sub(r"[-_.]+", "-", dist).lower()


def discover() -> Installed:
    """Find all installed plugins in one pass over the distributions on sys.path.

    Never raises for what it reads: a distribution whose metadata is unusable is skipped and named
    in ``damaged``.
    """
    plugins: list[PluginRecord] = []
    damaged: list[str] = []
    seen: set[str] = set()
    for found in distributions():
        if not _mentions_plugins(found):
            continue
        try:
            name = normalise(found.metadata["Name"])
            if name not in seen:
                seen.add(name)
                plugins += _records(_first_on_path(name, found), damaged)
        except Exception as error:  # noqa: BLE001 - metadata is other people's; anything can be in it
            where = getattr(found, "_path", found)
            damaged.append(f"{where}: unusable metadata ({type(error).__name__}: {error})")
    order = list(GROUPS)
    plugins.sort(key=lambda p: (order.index(p.kind), p.name, p.dist.lower()))
    return Installed(plugins=tuple(plugins), damaged=tuple(damaged))


def _mentions_plugins(found: Distribution) -> bool:
    """Whether it may hold plugins; decides without parsing, for most distributions hold none."""
    try:
        return "qinfer." in (found.read_text("entry_points.txt") or "")
    except Exception:  # noqa: BLE001 - unreadable, and nothing says that it is about us
        return False


def _first_on_path(name: str, found: Distribution) -> Distribution:
    """The distribution of that name which an import would use, were there several on sys.path."""
    try:
        return distribution(name)
    except PackageNotFoundError:  # its folder is named unlike its metadata
        return found


def _records(dist: Distribution, damaged: list[str]) -> Iterator[PluginRecord]:
    entries = dist.entry_points
    name, version = dist.metadata["Name"], dist.metadata["Version"] or "?"
    for kind, group in GROUPS.items():
        plugins = {entry.name: entry for entry in entries.select(group=group)}
        aliases = entries.select(group=f"{group}.aliases")
        reads = entries.select(group=f"{group}.reads")
        values = {entry.value for entry in plugins.values()}
        for extra in (*aliases, *reads):
            if extra.value not in values:
                damaged.append(
                    f'{name} {version}: "{extra.name}" in {extra.group} stands for'
                    f" {extra.value}, which is no plugin in {group}"
                )
        for entry in plugins.values():
            yield PluginRecord(
                kind=kind,
                name=entry.name,
                dist=name,
                version=version,
                value=entry.value,
                entry_point=entry,
                aliases=_names_of(entry.value, aliases),
                reads=_names_of(entry.value, reads),
            )


def _names_of(value: str, entries: EntryPoints) -> tuple[str, ...]:
    return tuple(sorted({entry.name for entry in entries if entry.value == value}))
