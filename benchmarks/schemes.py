"""Is one scheme faster than another? python -m benchmarks.schemes wint8 a8w8

The demo in both by turns in one process (pair.py), in either order in as many processes, as where
memory lies differs from process to process. A process that did not have its two processors is
measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, describe
from benchmarks.pair import COLUMNS
from benchmarks.pairs import apart, measure


def main() -> None:
    """Measure; print every process's line as it comes, and a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schemes", description=__doc__)
    parser.add_argument("schemes", nargs=2)
    parser.add_argument("--rounds", type=int, default=4, help="of two processes each")
    parser.add_argument("--prompts", type=int, default=20, help="answered by each in a process")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    first, second = options.schemes
    found = [
        measure(*names, str(options.prompts))
        for _ in range(options.rounds)
        for names in ((first, second), (second, first))
    ]
    pairs = [dict(zip(pair["models"], pair["ms"], strict=True)) for pair in found]
    least = min(pair["processors"] for pair in found)
    title = f"{len(found)} processes; {least:.2f} processors or more"
    table = Table("", *(f"{name} ms" for name in COLUMNS), title=title)
    for name in (first, second):
        table.add_row(
            name, *(f"{median(pair[name][col] for pair in pairs):.3f}" for col in COLUMNS)
        )
    both = [(pair[second], pair[first]) for pair in pairs]
    table.add_row(f"{second} / {first}", *(apart(both, column) for column in COLUMNS))
    Console(width=160).print(table)
    if options.json:
        report = {"machine": describe(), "commit": commit(), "processes": found}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
