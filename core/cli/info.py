"""``qinfer info``: what a model is and what it needs, from its config.json or manifest alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qinfer.core.cli.options import MODEL, GroupedCommand, option

if TYPE_CHECKING:
    from pathlib import Path

    from qinfer.core.model_card import ModelCard


@click.command("info", cls=GroupedCommand)
@click.argument("model", metavar="FOLDER|HUB_ID")
@option(MODEL, "--plugin", metavar="NAME", help="Model family's plugin.")
@option(MODEL, "--quant", "schemes", metavar="NAME", multiple=True,
        help="Scheme to show. Can be repeated; without it, all that are installed.")  # fmt: skip
@option("Output", "--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(model: str, plugin: str | None, schemes: tuple[str, ...], as_json: bool) -> None:
    """Show what a model is and what it needs; reads its config.json and no weights.

    Sizes are those of the parameters as a scheme holds them, and of the KV cache of one token and
    of a full context. Of a hub model only config.json is downloaded. Of an exported folder its
    manifest is shown; a plugin or a scheme that it was not made with is an error.
    """
    from qinfer.core.checkpoint.source import resolve_config
    from qinfer.core.export.manifest import is_export
    from qinfer.core.json_file import read_json
    from qinfer.core.model_card import model_card
    from qinfer.core.registry.discovery import discover

    installed = [record.reference for record in discover().of_kind("quant")]
    path = resolve_config(model)
    if is_export(path.parent):
        click.echo(_export(path.parent, plugin or "", schemes, as_json))
        return
    card = model_card(read_json(path), plugin or "", schemes or _plain(installed))
    click.echo(json.dumps(_record(model, card), indent=2) if as_json else _render(model, card))


def _export(folder: Path, plugin: str, schemes: tuple[str, ...], as_json: bool) -> str:
    """An exported folder's manifest."""
    from qinfer.core.export.codec import to_json
    from qinfer.core.export.describe import describe
    from qinfer.core.export.manifest import read_manifest
    from qinfer.core.export.open import refuse_contradictions
    from qinfer.core.session import select
    from qinfer.core.types import RunConfig

    manifest = read_manifest(folder)
    for scheme in schemes or ("auto",):
        run = RunConfig(plugin=plugin, quant=scheme, backend="auto")
        refuse_contradictions(run, select(run), manifest, folder)
    if as_json:
        return json.dumps(to_json(manifest), indent=2)
    return "\n".join(f"{name:<14}{text}" for name, text in describe(manifest))


def _plain(references: list[str]) -> list[str]:
    """Names, with the distribution before those that several have."""
    names = [reference.rpartition(":")[2] for reference in references]
    return [n if names.count(n) == 1 else r for r, n in zip(references, names, strict=True)]


def _record(model: str, card: ModelCard) -> dict[str, Any]:
    config = asdict(card.config)
    experts = config.pop("experts")
    if experts is not None:
        experts["layers"] = sorted(experts["layers"])
    for name in ("compute_dtype", "extra"):  # of a run, and of the plugin
        del config[name]
    return {
        "model": model,
        "plugin": card.plugin,
        "parameters": card.parameters,
        "active_parameters": card.active_parameters,
        "config": {**config, "experts": experts},
        "schemes": {name: asdict(needs) for name, needs in card.needs.items()},
    }


def _render(model: str, card: ModelCard) -> str:
    config = card.config
    rows = [
        ("model", f"{model}, read by {card.plugin}"),
        ("parameters", parameters(card)),
        ("layers", f"{config.num_layers} of width {config.hidden_size:,}"),
        (
            "attention",
            f"{config.num_heads} heads of {config.head_dim}, {config.num_kv_heads} for keys and "
            f"values{_windows(config.windows)}",
        ),
        ("mlp", _mlp(card)),
        ("vocabulary", f"{config.vocab_size:,}{', tied' * config.tie_word_embeddings}"),
        ("context", f"{config.max_position_embeddings:,} tokens{_scaling(card)}"),
    ]
    lines = [f"{name:<12}{text}" for name, text in rows]
    head: tuple[str, ...] = ("scheme", "parameters", "cache per token", "full context")
    table = [head, *(_needs_row(card, name) for name in card.needs)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for scheme, *numbers in table:
        cells = [n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([scheme.ljust(widths[0]), *cells]))
    return "\n".join([*lines[: len(rows)], "", *lines[len(rows) :]])


def _needs_row(card: ModelCard, name: str) -> tuple[str, ...]:
    needs, context = card.needs[name], card.config.max_position_embeddings
    per_token = needs.cache_bytes_per_token
    return name, *map(binary_size, (needs.parameter_bytes, per_token, per_token * context))


def parameters(card: ModelCard) -> str:
    """How many, and how many of them a token uses where that is fewer."""
    active = card.active_parameters
    some = "" if active == card.parameters else f", {active / 1e9:,.2f} billion for a token"
    return f"{card.parameters / 1e9:,.2f} billion{some}"


def _mlp(card: ModelCard) -> str:
    config, experts = card.config, card.config.experts
    if experts is None:
        return f"{config.intermediate_size:,}"
    shared = f" and a shared one of {experts.shared_size:,}" if experts.shared_size else ""
    dense = config.num_layers - len(experts.layers)
    rest = f"; {dense} layers have a plain one of {config.intermediate_size:,}" if dense else ""
    return (
        f"{experts.top_k} of {experts.count} experts of {experts.intermediate_size:,}{shared}{rest}"
    )


def _windows(windows: tuple[int, ...]) -> str:
    limited = [window for window in windows if window]
    return f"; {len(limited)} layers see the last {limited[0]:,} tokens" if limited else ""


def _scaling(card: ModelCard) -> str:
    scaling = card.config.rotary_scaling
    if scaling is None:
        return ""
    return f", trained for {scaling.original:,} ({scaling.kind} scaling)"


def binary_size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
