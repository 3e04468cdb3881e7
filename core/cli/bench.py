"""``qinfer bench``: how fast a model runs here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from qinfer.core.cli.options import MODEL, GroupedCommand, option
from qinfer.core.cli.plot import check_plot, pyplot, save
from qinfer.core.cli.table import table
from qinfer.core.errors import UsageError

WORK = "Measurement"
COUNT = click.IntRange(min=1)
MOST_REQUESTS = 65536
"""Their prompts are all made before the first is computed."""
REQUESTS = click.IntRange(min=1, max=MOST_REQUESTS)

COLUMNS = {
    "quant": "quant",
    "prompt_tokens": "prompt",
    "batch_size": "batch",
    "prefill_tokens_per_s": "prefill tok/s",
    "decode_tokens_per_s": "decode tok/s",
    "output_tokens_per_s": "all tok/s",
    "first_token_seconds_p50": "first token ms",
    "decode_step_seconds_p50": "step ms p50",
    "decode_step_seconds_p99": "p99",
    "floor_seconds": "floor ms",
    "floor_share": "share",
    "parameter_bytes": "weights MiB",
    "peak_memory_bytes": "peak MiB",
}

KERNEL_COLUMNS = {
    "operator": "operator",
    "shapes": "result, largest argument",
    "calls": "calls",
    "seconds": "one, ms",
    "floor_seconds": "floor ms",
    "floor_share": "share",
    "step_seconds": "together, ms",
}


@click.command("bench", cls=GroupedCommand, context_settings={"max_content_width": 100})
@option(MODEL, "--model", metavar="FOLDER|HUB_ID", help="Checkpoint; without it, the demo.")
@option(MODEL, "--config", metavar="NAME|FILE", default="",
        help="Random weights for a published model such as qwen2-7b, or for a config.json "
        "or its folder, instead of a checkpoint.")  # fmt: skip
@option(MODEL, "--plugin", metavar="NAME", help="Model family's plugin.")
@option(MODEL, "--quant", "schemes", metavar="NAME", multiple=True, default=["auto"],
        show_default=True, help="Scheme to measure. Can be repeated.")  # fmt: skip
@option(MODEL, "--backend", metavar="NAME", default="auto", show_default=True,
        help="What runs the model.")  # fmt: skip
@option(
    MODEL,
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto, cpu, gpu, gpu:1",
)
@option(MODEL, "--dtype", default="auto", show_default=True, help="Precision of the parameters.")
@option(MODEL, "--kv-cache-dtype", metavar="NAME", default="auto", show_default=True,
        help="auto (the scheme's), int8 or fp8.")  # fmt: skip
@option(MODEL, "--threads", type=click.IntRange(min=0), default=0,
        help="Threads to compute with.")  # fmt: skip
@option(MODEL, "--require-kernels", is_flag=True,
        help="Fail rather than measure the slow reference operators.")  # fmt: skip
@option(WORK, "--prompt-tokens", type=COUNT, multiple=True, default=[128], show_default=True,
        help="Random tokens in each prompt. Can be repeated.")  # fmt: skip
@option(WORK, "--output-tokens", type=COUNT, default=64, show_default=True,
        help="Tokens to generate for each.")  # fmt: skip
@option(WORK, "--batch-size", "batch_sizes", type=REQUESTS, multiple=True, default=[1],
        show_default=True, help="Requests at a time. Can be repeated.")  # fmt: skip
@option(WORK, "--requests", type=click.IntRange(min=0, max=MOST_REQUESTS), default=0,
        help="Of a run, as many at a time as the batch size; by default that many.")  # fmt: skip
@option(WORK, "--max-batch-tokens", type=click.IntRange(min=0), default=0,
        help="Most tokens of a step; by default the device's: see run.")  # fmt: skip
@option(WORK, "--repeat", type=COUNT, default=3, show_default=True,
        help="Runs counted, after one that is not.")  # fmt: skip
@option(WORK, "--kernels", is_flag=True,
        help="Also time each operator of a decoding step, beside its floor (GPU).")  # fmt: skip
@option("Output", "--json", "as_json", is_flag=True, help="Print a JSON list of records.")
@option("Output", "--plot", metavar="FILE.png|svg", type=click.Path(path_type=Path),
        help="Draw the speeds into a file.")  # fmt: skip
def command(schemes: tuple[str, ...], as_json: bool, plot: Path | None, **options: Any) -> int:
    """Measure prefill and decode speed, time to the first token, and memory.

    Prompts are random tokens, answers are greedy and of a fixed length. Figures are medians over
    the counted runs; percentiles are over all of them. Speeds are of the whole batch. The floor
    is the least a step's memory takes to be read, at the speed measured in the same run.
    """
    from qinfer.core.measure.bench import BenchSettings, measure_all

    if plot:
        check_plot(plot)
    if options.get("model") and options["config"]:
        raise UsageError("--model and --config exclude each other", remedy="Give one of them.")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    settings = BenchSettings(**given)
    records = measure_all(settings, schemes, lambda text: click.echo(text, err=True))
    click.echo(json.dumps(records, indent=1) if as_json else _table(records, COLUMNS))
    for record in [] if as_json else records:
        if "kernels" in record:
            click.echo(_kernels(record))
    if plot:
        _draw(records, plot)
    return 0


def _table(records: list[dict[str, Any]], columns: Mapping[str, str]) -> str:
    return table([list(columns.values()), *([_cell(r, key) for key in columns] for r in records)])


def _kernels(record: dict[str, Any]) -> str:
    """The operators of a case's decoding step, and what they take together."""
    case = f"{record['quant']}, {record['batch_size']} x {record['prompt_tokens']} tokens"
    together = sum(one["step_seconds"] for one in record["kernels"])
    title = f"\n{case}: the operators of a step, one by one, take {together * 1000:,.3f} ms"
    return f"{title}\n{_table(record['kernels'], KERNEL_COLUMNS)}"


def _cell(record: dict[str, Any], key: str) -> str:
    value = record[key]
    if value is None or isinstance(value, str):
        return value or "-"
    if key.endswith("_share"):
        return f"{value:.0%}"
    if key.endswith("_bytes"):
        return f"{value / 2**20:,.0f}"
    if "seconds" in key:
        return f"{value * 1000:,.{4 if 'operator' in record else 2}f}"
    return f"{value:,.0f}" if isinstance(value, int) else f"{value:,.1f}"


def _draw(records: list[dict[str, Any]], path: Path) -> None:
    """Two panels, prefill and decode speed over the batch size, a line for each scheme."""
    figure, panels = pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, key in zip(panels, ("prefill_tokens_per_s", "decode_tokens_per_s"), strict=True):
        for scheme in dict.fromkeys(record["quant"] for record in records):
            mine = [record for record in records if record["quant"] == scheme]
            sizes = [record["batch_size"] for record in mine]
            axes.plot(sizes, [record[key] or 0 for record in mine], marker="o", label=scheme)
        axes.set(xlabel="requests at a time", ylabel=key.replace("_", " "), ylim=(0, None))
        axes.legend()
    figure.suptitle(records[0]["model"], fontsize=9)
    save(figure, path)
