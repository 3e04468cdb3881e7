"""``qinfer eval``: what a scheme costs in accuracy."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qinfer.core.cli.options import MODEL, GroupedCommand, option

if TYPE_CHECKING:
    from qinfer.core.measure.evaluate import Scores

TEXT = "Text"
HEADING = ("", "perplexity", "change", "mean KL", "top-1 agreement", "weights MiB")


@click.command("eval", cls=GroupedCommand, context_settings={"max_content_width": 100})
@option(MODEL, "--model", metavar="FOLDER|HUB_ID", help="Checkpoint; without it, the demo.")
@option(MODEL, "--quant", "schemes", metavar="NAME", multiple=True,
        help="Scheme to evaluate. Can be repeated.")  # fmt: skip
@option(MODEL, "--reference", metavar="FOLDER|HUB_ID", default=None,
        help="Checkpoint to compare with; without it, the model itself, unquantised.")  # fmt: skip
@option(MODEL, "--plugin", metavar="NAME", default="", help="Model family's plugin.")
@option(MODEL, "--backend", metavar="NAME", default="auto", show_default=True,
        help="What runs the model.")  # fmt: skip
@option(MODEL, "--device", metavar="NAME", default="auto", show_default=True, help="As for run.")
@option(MODEL, "--dtype", default="auto", show_default=True, help="Precision of the parameters.")
@option(MODEL, "--threads", type=click.IntRange(min=0), default=0,
        help="Threads to compute with.")  # fmt: skip
@option(MODEL, "--kv-cache-dtype", "kv_cache_dtype", default="auto", show_default=True,
        type=click.Choice(["auto", "int8", "fp8"]),
        help="What the schemes, and not the reference, hold keys and values in.")  # fmt: skip
@option(TEXT, "--text", metavar="FILE", type=click.Path(path_type=Path),
        help="Text to predict: a text file, or JSONL. Without it, a small set.")  # fmt: skip
@option(TEXT, "--window", type=click.IntRange(min=2), default=512, show_default=True,
        help="Most tokens read in one piece.")  # fmt: skip
@option(TEXT, "--max-tokens", "limit", type=click.IntRange(min=2),
        help="Stop after this many tokens of the text.")  # fmt: skip
@option("Output", "--json", "as_json", is_flag=True, help="Print a JSON list of records.")
@option("Output", "--plot", metavar="FILE.png|svg", type=click.Path(path_type=Path),
        help="Draw the results into a file.")  # fmt: skip
def command(
    model: str | None,
    schemes: tuple[str, ...],
    reference: str | None,
    kv_cache_dtype: str,
    text: Path | None,
    window: int,
    limit: int | None,
    as_json: bool,
    plot: Path | None,
    **options: Any,
) -> int:
    """Compare schemes with the unquantised model on a text.

    Perplexity is exp of the mean negative log-probability of each token after those before it in
    its window; the divergence is that of the scheme's predictions from the reference's, in nats.
    """
    from qinfer.core.cli.plot import check_plot
    from qinfer.core.cli.table import table
    from qinfer.core.measure.evaluate import evaluate
    from qinfer.core.progress import TerminalProgress
    from qinfer.core.types import RunConfig

    if plot:
        check_plot(plot)
    # A cache for one window: the rest of the memory is for the model.
    base = RunConfig(max_model_len=window, max_num_seqs=1, **options)
    runs = [
        (name, replace(_run(base, model, name), kv_cache_dtype=kv_cache_dtype)) for name in schemes
    ]
    unquantised = _run(base, reference or model, "auto")
    results = evaluate(
        unquantised, runs, text=text, window=window, limit=limit or 0, progress=TerminalProgress()
    )
    scores = list(results)
    records = [_record(score, scores[0]) for score in scores]
    rows = [HEADING, *map(_row, records)]
    click.echo(json.dumps(records, indent=1) if as_json else table(rows))
    if plot:
        _draw(records[1:], plot)
    return 0


def _run(base: Any, model: str | None, quant: str) -> Any:
    return replace(base, model=model or "", quant=quant)


def _record(score: Scores, reference: Scores) -> dict[str, Any]:
    change = score.perplexity / reference.perplexity - 1
    return asdict(score) | {"perplexity_change": change}


def _row(record: dict[str, Any]) -> list[str]:
    def shown(key: str, form: str) -> str:
        return "-" if record[key] is None else format(record[key], form)

    is_reference = record["mean_kl"] is None
    return [
        record["label"],
        shown("perplexity", ".4f"),
        "-" if is_reference else shown("perplexity_change", "+.2%"),
        shown("mean_kl", ".5f"),
        shown("top1_agreement", ".2%"),
        format(record["parameter_bytes"] / 2**20, ",.1f"),
    ]


def _draw(records: list[dict[str, Any]], path: Path) -> None:
    """Two panels over the schemes: the change of perplexity, and the divergence."""
    from qinfer.core.cli.plot import pyplot, save

    figure, panels = pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    labels = [record["label"] for record in records]
    changes = [100 * record["perplexity_change"] for record in records]
    for axes, values, title in (
        (panels[0], changes, "change of perplexity, %"),
        (panels[1], [record["mean_kl"] for record in records], "mean KL, nats"),
    ):
        axes.barh(labels, values)
        axes.invert_yaxis()
        axes.set(xlabel=title)
    save(figure, path)
