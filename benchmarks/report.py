"""The results as a table on the terminal, as markdown and as JSON. Missing is "not measured"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

MISSING = "not measured"
DEMO = "the demo checkpoint"
_DIRECTORIES = re.compile(r"(?<![\w/])(/[^\s/'\"]+)*/(?=[^\s/'\"])")
BUSY = 0.7
"""Load average of the minute before, from which on something else must have been running."""

Rows = Sequence[Sequence[str]]
Cells = Callable[[dict[str, Any]], list[str]]
"""What a measured program's row says after its name."""


def speed_table(report: dict[str, Any]) -> tuple[Sequence[str], Rows]:
    """Head and a row for each program."""
    streams = report["settings"]["streams"]
    several = streams > 1
    head = (
        "program",
        *([f"output tokens/s of {streams} streams"] if several else []),
        "prefill tokens/s",
        "all first tokens ms" if several else "first token ms",
        "decode tokens/s",
        "share of floor",
        "load s",
        "peak MB",
        "threads",
    )
    return head, _rows(head, report["programs"], _outputs if several else _speeds)


def startup_table(report: dict[str, Any]) -> tuple[Sequence[str], Rows]:
    """Head and a row for each command."""
    head = "command", "seconds", "fastest", "slowest"
    return head, _rows(head, report["startup"], _times)


def write(report: dict[str, Any], folder: Path) -> Path:
    """Write ``<date>-<commit>[-<what else>].json`` and ``.md``; returns the markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    machine, settings = report["machine"], report["settings"]
    parts = [machine["date"][:10], machine["commit"]]
    parts += [settings["model"]] if settings["model"] != DEMO else []
    parts += [f"{settings['streams']}-streams"] if settings["streams"] > 1 else []
    stem = folder / "-".join(parts)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    stem.with_name(stem.name + ".json").write_text(text, encoding="utf-8")
    target = stem.with_name(stem.name + ".md")
    target.write_text(markdown(report), encoding="utf-8")
    return target


def markdown(report: dict[str, Any]) -> str:
    """The whole report as a page."""
    parts = [f"# Benchmark {report['machine']['date']}", facts(report)]
    if report["programs"]:
        parts += [_table(*speed_table(report)), _texts(report["programs"])]
    if report["startup"]:
        parts += ["## Start-up", _table(*startup_table(report))]
    parts += ["\n".join(f"- {line}" for line in reasons(report))]
    return "\n\n".join(filter(None, parts)) + "\n"


def facts(report: dict[str, Any]) -> str:
    """What it was measured on, as a list."""
    machine, settings = report["machine"], report["settings"]
    versions: dict[str, str] = {"python": machine["python"]}
    for result in report["programs"]:
        versions |= result.get("versions", {})
    notes = dict.fromkeys(r["note"] for r in report["programs"] if r.get("note"))
    reads = sorted(speed / 1e9 for speed in report["read_bandwidths"])
    lines = [
        f"commit {machine['commit']}",
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}",
        f"load average before: {machine['load_average']}" + busy(machine),
        f"vector instructions: {' '.join(machine['features']) or 'unknown'}",
        f"memory read at {reads[0]:.1f} to {reads[-1]:.1f} GB/s with {settings['threads']} threads "
        f"in these rounds, median {median(reads):.1f}",
        f"model: {settings['model']}; {settings['prompt_tokens']} prompt tokens, "
        f"{settings['new_tokens']} new ones, {settings['streams']} at once, "
        f"medians of {settings['rounds']} rounds",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        *notes,
        f"`{machine['command']}`",
    ]
    return "\n".join(f"- {line}" for line in lines)


def busy(machine: dict[str, Any]) -> str:
    """A warning where something else was running."""
    return " (BUSY: do not compare these numbers)" if machine["load_average"] > BUSY else ""


def _rows(head: Sequence[str], results: Sequence[dict[str, Any]], cells: Cells) -> Rows:
    missing = [MISSING, *["-"] * (len(head) - 2)]
    return [[r["name"], *(missing if "missing" in r else cells(r))] for r in results]


def _outputs(r: dict[str, Any]) -> list[str]:
    return [f"{r['output_tokens_per_second']:.1f}", *_speeds(r)]


def _speeds(r: dict[str, Any]) -> list[str]:
    share = r["share_of_floor"]
    return [
        f"{r['prefill_tokens_per_second']:.0f}",
        f"{r['first_token_seconds'] * 1e3:.0f}",
        f"{r['decode_tokens_per_second']:.1f}",
        f"{share:.0%}" if share else "",
        f"{r['load_seconds']:.2f}",
        f"{r['peak_memory_bytes'] / 1e6:.0f}",
        str(r["threads"]),
    ]


def _times(r: dict[str, Any]) -> list[str]:
    times = r["seconds"], min(r["all_seconds"]), max(r["all_seconds"])
    return [f"{seconds:.3f}" for seconds in times]


def reasons(report: dict[str, Any]) -> list[str]:
    """Why something was not measured, without this machine's paths."""
    missing = [r for r in (*report["programs"], *report["startup"]) if "missing" in r]
    return [f"{r['name']} {MISSING}: {_DIRECTORIES.sub('', r['missing'])}" for r in missing]


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines
    )


def _texts(results: Sequence[dict[str, Any]]) -> str:
    """What each wrote for the same prompt: speed counts only with the same sense."""
    lines = [f"- {r['name']}: {json.dumps(r['text'][:70])}" for r in results if "text" in r]
    return "\n".join(["How each went on from the same prompt:", "", *lines])
