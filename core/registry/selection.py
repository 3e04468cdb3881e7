"""From what the user typed, or a config.json, to the plugins of a session."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from qinfer.core.errors import AmbiguousPlugin, BadCheckpoint, PluginNotFound
from qinfer.core.registry.contract import check_contract, explain
from qinfer.core.registry.discovery import Installed, PluginRecord, discover, normalise
from qinfer.core.registry.hooks import Hooks
from qinfer.core.specs import Plugin


def resolve(kind: str, reference: str, installed: Installed | None = None) -> PluginRecord:
    """The plugin that ``reference`` ("name" or "dist:name") means; names win over aliases.

    ``installed`` saves a scan when several references are resolved. Raises PluginNotFound with
    the nearest names, or AmbiguousPlugin naming each "dist:name". Imports no plugin.
    """
    installed = installed or discover()
    dist, _, name = reference.rpartition(":")
    candidates = [
        record
        for record in installed.of_kind(kind)
        if not dist or normalise(record.dist) == normalise(dist)
    ]
    matches = [record for record in candidates if record.name == name]
    matches = matches or [record for record in candidates if name in record.aliases]
    if not matches:
        raise _not_found(kind, reference, installed)
    if len(matches) > 1:
        raise _ambiguous(f'several {kind} plugins are called "{reference}"', matches)
    return matches[0]


def detect_model(raw: Mapping[str, Any], installed: Installed | None = None) -> PluginRecord:
    """The model plugin that says it reads this parsed config.json.

    ``architectures`` decides, being more exact; without a match, ``model_type``. Raises
    BadCheckpoint when no plugin reads it, AmbiguousPlugin when several do. Imports no plugin.
    """
    models = (installed or discover()).of_kind("model")
    listed = raw.get("architectures")
    architectures = listed if isinstance(listed, list) else []
    model_type = raw.get("model_type")
    matches = [record for record in models if any(arch in record.reads for arch in architectures)]
    matches = matches or [record for record in models if model_type in record.reads]
    said = f"architectures {architectures} and model_type {model_type!r}"
    if not matches:
        tried = "; ".join(
            f"{record.reference} reads {', '.join(record.reads) or 'only what it is named for'}"
            for record in models
        )
        raise BadCheckpoint(
            f"no installed model plugin reads a config.json with {said}"
            f" (tried: {tried or 'none is installed'})",
            remedy="Install a plugin that reads this family; see qinfer list-plugins.",
        )
    if len(matches) > 1:
        raise _ambiguous(f"several model plugins read a config.json with {said}", matches)
    return matches[0]


def stored_method(raw: Mapping[str, Any]) -> str:
    """By what a checkpoint says it was quantised: quant_method, or PaddleNLP's quant_type; ""."""
    for key in ("quantization_config", "compression_config"):
        said = raw.get(key)
        if isinstance(said, Mapping) and said:
            method = said.get("quant_method") or said.get("quant_type")
            if method or "quant_type" not in said:
                return str(method)
    return ""


def choose_quant(
    raw: Mapping[str, Any], named: PluginRecord | None, installed: Installed
) -> PluginRecord:
    """The quant plugin of a run: what reads a quantised checkpoint's format, else the one the user
    named, else "none".

    Raises BadCheckpoint for a format no plugin reads, AmbiguousPlugin when several do.
    """
    method = stored_method(raw)
    if not method:
        return named or resolve("quant", "none", installed)
    matches = [record for record in installed.of_kind("quant") if method in record.reads]
    if named in matches:
        return named
    if not matches:
        known = sorted({name for record in installed.of_kind("quant") for name in record.reads})
        raise BadCheckpoint(
            f"config.json says the checkpoint is quantised by {method!r:.80}, which no installed "
            f"plugin reads (known: {', '.join(known)})",
            remedy="Take an unquantised checkpoint of this model, with --quant, or install a "
            "plugin that reads this format.",
        )
    if len(matches) > 1:
        raise _ambiguous(f"several quant plugins read checkpoints quantised by {method}", matches)
    return matches[0]


def load_plugin(record: PluginRecord) -> Plugin:
    """Import a plugin and hold it against the contract.

    The entry point may be a class (called without arguments), an instance or a module. Raises
    BrokenPlugin, whatever the import does short of ending the process.
    """
    try:
        found = record.entry_point.load()
        plugin = found() if isinstance(found, type) else found
    except (Exception, SystemExit) as error:
        raise record.broken(f"cannot be loaded: {explain(error)}", _remedy(error)) from error
    return check_contract(record, plugin)


def open_session(records: Sequence[PluginRecord]) -> Hooks:
    """Load the selected plugins, and only them, and give the hooks they answer.

    Raises BrokenPlugin for one that cannot be used, and when two answer a hook that exactly one
    may answer.
    """
    return Hooks([(record, load_plugin(record)) for record in dict.fromkeys(records)])


def _not_found(kind: str, reference: str, installed: Installed) -> PluginNotFound:
    records = installed.of_kind(kind)
    names = {record.name for record in records} | {n for r in records for n in r.aliases}
    names |= {record.reference for record in records}
    near = difflib.get_close_matches(reference, sorted(names), n=1, cutoff=0.5)
    other = [r.kind for r in installed.plugins if reference in (r.name, *r.aliases)]
    hint = f'; did you mean "{near[0]}"?' if near else ""
    if other and not near:
        hint = f"; a plugin of that name is of kind {other[0]}"
    listed = ", ".join(f"{record.name} ({record.dist})" for record in records)
    return PluginNotFound(
        f'no {kind} plugin is called "{reference}"{hint}',
        remedy=f"Installed {kind} plugins: {listed or 'none'}. See qinfer list-plugins.",
    )


def _ambiguous(what: str, matches: Sequence[PluginRecord]) -> AmbiguousPlugin:
    references = ", ".join(record.reference for record in matches)
    option = {"model": "--plugin"}.get(matches[0].kind, f"--{matches[0].kind}")
    return AmbiguousPlugin(
        f"{what}: {references}",
        remedy=f"Say which, for instance {option} {matches[0].reference}",
    )


def _remedy(error: BaseException) -> str:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    if error.name.partition(".")[0] == "paddle":
        return (
            "Run pip install 'qinfer-paddle[cpu]' (in a clone: pip install '.[cpu]'); "
            "for a GPU see the README."
        )
    return f'Install what provides the module "{error.name}", or upgrade the plugin.'
