"""Is an exported program as fast as the model? python -m benchmarks.static [--scheme none ...]

The demo in each scheme, dynamic and exported, by turns in one process (pair.py), in both
orders and in several processes, as where memory lies differs from process to process. Processes
with one of the two twice show how far models that are the same model are apart: what is within
that is not a difference. A process that did not have its two processors is measured again. Last
the commands' start-up, as whole processes until the first byte. The exit code is 1 when tokens
differ.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, describe
from benchmarks.pair import COLUMNS
from benchmarks.pairs import apart, measure
from benchmarks.startup import QUESTION, Command
from qinfer.core.export.make import export_model
from qinfer.core.progress import NoProgress
from qinfer.core.types import RunConfig

SCHEMES = ["none", "wint8", "wint4", "a8w8", "a8w8c8", "fp8"]
WAYS = ("dynamic", "static")
PAIRS = (("dynamic", "static"), ("static", "dynamic"), ("dynamic", "dynamic"), ("static", "static"))


def main() -> None:
    """Measure each scheme; print every process's line as it comes, and a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("--scheme", nargs="*", default=SCHEMES)
    parser.add_argument("--rounds", type=int, default=3, help="of four processes each")
    parser.add_argument("--startup-rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe(), "commit": commit(), "schemes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in options.scheme:
            output = Path(folder) / scheme
            export_model(RunConfig(quant=scheme, backend="static"), output, NoProgress())
            models = {"dynamic": scheme, "static": str(output)}
            found = {
                "pairs": [
                    measure(*(models[way] for way in pair)) | {"ways": pair}
                    for pair in options.rounds * PAIRS
                ],
                "startup s": startup(scheme, output, options.startup_rounds),
            }
            report["schemes"][scheme] = found
            show(scheme, found)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not all(same_tokens(found) for found in report["schemes"].values()))


def startup(scheme: str, output: Path, rounds: int) -> dict[str, Any]:
    """Seconds from the command to the first byte of an answer."""
    qinfer = shutil.which("qinfer", path=str(Path(sys.executable).parent)) or "qinfer"
    rest = ["--max-tokens", "2", "--temperature", "0", QUESTION]
    models = {"dynamic": ["--quant", scheme], "static": ["--model", str(output)]}
    commands = [
        Command(name=way, words=[qinfer, "run", *model, *rest], first_byte=True)
        for way, model in models.items()
    ]
    for turn in range(rounds + 1):
        for command in commands:
            command.run()
            if turn == 0:
                command.seconds.clear()
    return {command.name: command.result().get("seconds") for command in commands}


def same_tokens(found: dict[str, Any]) -> bool:
    """Whether both gave the same ones in every process."""
    return all(pair["same"] for pair in found["pairs"])


def show(scheme: str, found: dict[str, Any]) -> None:
    """A row for each of the two, one for their ratios, one for ratios of the same one twice."""
    title = "the same tokens" if same_tokens(found) else "OTHER TOKENS"
    least = min(pair["processors"] for pair in found["pairs"])
    title += f"; {least:.2f} processors or more"
    table = Table(scheme, *(f"{name} ms" for name in COLUMNS), "start-up s", title=title)
    mixed = [dict(zip(pair["ways"], pair["ms"], strict=True)) for pair in found["pairs"]]
    mixed = [pair for pair in mixed if len(pair) == len(WAYS)]
    for way in WAYS:
        middle = [median(pair[way][name] for pair in mixed) for name in COLUMNS]
        seconds = found["startup s"][way] or float("nan")
        table.add_row(way, *(f"{value:.3f}" for value in middle), f"{seconds:.2f}")
    alike = [pair["ms"] for pair in found["pairs"] if len(set(pair["ways"])) == 1]
    ratios = {
        "static / dynamic": [(pair["static"], pair["dynamic"]) for pair in mixed],
        "the same twice": [(second, first) for first, second in alike],
    }
    for name, pairs in ratios.items():
        table.add_row(name, *(apart(pairs, column) for column in COLUMNS))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
