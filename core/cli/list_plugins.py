"""``qinfer list-plugins``: what is installed, read from metadata without importing a plugin."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from qinfer.core.errors import BrokenPlugin
from qinfer.core.registry.discovery import PluginRecord, discover
from qinfer.core.specs import GROUPS
from qinfer.core.types import API_VERSION

HEADERS = ("KIND", "NAME", "DISTRIBUTION", "ALIASES", "READS")


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    """What no range excludes, as it is neither less nor more than any bound."""
    if math.isnan(value):
        raise click.BadParameter("NaN is not a number of seconds.")
    return value


@click.command("list-plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (keys above).")
@click.option("--check", is_flag=True, help="Load each plugin, beside this process.")
@click.option("--kind", "kinds", type=click.Choice(list(GROUPS)), multiple=True, help="Only these.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    callback=_number,
    default=60.0,
    show_default=True,
    help="Seconds a plugin may take to load in --check.",
)
def command(as_json: bool, check: bool, kinds: tuple[str, ...], timeout: float) -> int:
    """List the installed plugins: NAME is what --plugin, --quant and --backend take.

    Exits with 3 when --check finds a plugin that cannot be used. The JSON object has "api" (the
    plugin API of this qinfer), "damaged" (a text for each distribution with unusable metadata) and
    "plugins", each with "kind", "name", "distribution", "version", "aliases", "reads", "value" and,
    after --check, "check": {"ok", "summary", "api", "problems", "remedy"}.
    """
    installed = discover()
    plugins = [p for p in installed.plugins if not kinds or p.kind in kinds]
    rows = [_row(record) for record in plugins]
    if check:
        from qinfer.core.registry.check import check_all

        for row, result in zip(rows, check_all(plugins, timeout), strict=True):
            row["check"] = {**vars(result), "problems": list(result.problems)}
    if as_json:
        document = {"api": API_VERSION, "plugins": rows, "damaged": list(installed.damaged)}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo(_render(plugins))
        for line in _findings(rows):
            click.echo(line)
        for line in installed.damaged:
            click.echo(f"qinfer: warning: {line}", err=True)
    return BrokenPlugin.exit_code if any(not _ok(row) for row in rows) else 0


def _row(record: PluginRecord) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "name": record.name,
        "distribution": record.dist,
        "version": record.version,
        "aliases": list(record.aliases),
        "reads": list(record.reads),
        "value": record.value,
    }


def _ok(row: dict[str, Any]) -> bool:
    return "check" not in row or bool(row["check"]["ok"])


def _findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """After --check: a line for each plugin, and its problems below it."""
    lines = []
    for row in rows:
        if "check" in row:
            problems = row["check"]["problems"]
            state = ("flawed" if problems else "ok") if row["check"]["ok"] else "BROKEN"
            lines.append(f"{state:7} {row['kind']} {row['distribution']}:{row['name']}")
            lines += [f"        {text}" for text in (*problems, row["check"]["remedy"]) if text]
    return ["", *lines] if lines else []


def _render(plugins: Sequence[PluginRecord]) -> str:
    """Columns; in a terminal too narrow for them one block a plugin. No name is ever cut."""
    table = [
        (p.kind, p.name, f"{p.dist} {p.version}", ", ".join(p.aliases), ", ".join(p.reads))
        for p in plugins
    ]
    widths = [max(map(len, column)) for column in zip(HEADERS, *table, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(widths) + 99
    if sum(widths) + 2 * len(widths) - 2 > room:
        return "\n".join(_block(row, room) for row in table)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (HEADERS, *table)
    )


def _block(row: tuple[str, ...], room: int) -> str:
    kind, name, *details = row
    titled = zip(HEADERS[2:], details, strict=True)
    lines = [f"  {title.lower()}: {text}" for title, text in titled if text]
    wrapper = textwrap.TextWrapper(room, subsequent_indent="    ")
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return "\n".join([f"{kind} {name}", *map(wrapper.fill, lines)])
