"""What a plugin says of itself, and the version of the contract it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

API_VERSION = "1.4"
"""Version of the plugin contract (major.minor) that this core speaks."""

Kind = Literal["model", "quant", "backend", "observer"]


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """What a plugin says of itself, read before it is registered.

    ``api`` is the version of the contract the plugin was written for, such as "1.0".
    ``name`` equals the entry-point name and ``aliases`` the names it has in the kind's
    ``.aliases`` group. ``model_types`` and ``architectures`` (models only) are the values in
    config.json that the plugin can read.
    """

    name: str
    kind: Kind
    api: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
    homepage: str = ""
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Support:
    """Whether a plugin can work on a device; if not, why and what to do about it."""

    ok: bool
    reason: str = ""
    remedy: str = ""
