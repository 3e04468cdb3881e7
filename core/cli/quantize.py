"""``qinfer quantize``: a quantised checkpoint from a plain one and calibration data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from qinfer.core.cli.options import MODEL, GroupedCommand, option

HOW, OUTPUT = "Quantisation", "Output"


@click.command("quantize", cls=GroupedCommand, context_settings={"max_content_width": 100})
@option(MODEL, "--model", metavar="FOLDER|HUB_ID", default="",
        help="Checkpoint; without it, the demo.")  # fmt: skip
@option(MODEL, "--plugin", metavar="NAME", default="", help="Model family's plugin.")
@option(MODEL, "--dtype", default="auto", show_default=True,
        help="Precision of what is not quantised.")  # fmt: skip
@option(MODEL, "--threads", type=click.IntRange(min=0), default=0,
        help="Threads to compute with.")  # fmt: skip
@option(HOW, "--quant", metavar="NAME", default="a8w8", show_default=True,
        help="a8w8, a8w8c8, fp8, wint8, wint4, or another wint4 of qinfer run's.")  # fmt: skip
@option(HOW, "--method", metavar="NAME", default="",
        help="smoothquant or awq, gptq, and absmax, percentile or mse; several with a plus "
        "between. Without it, smoothquant+gptq for a8w8, gptq for the others.")  # fmt: skip
@option(HOW, "--activations", metavar="NAME", default="",
        help="Scale of activations: token (on the fly) or tensor (from the data).")  # fmt: skip
@option(HOW, "--group-size", type=int, default=0,
        help="Inputs that share a scale in wint4: 64 unless given, -1 for all.")  # fmt: skip
@option(HOW, "--zero-points", is_flag=True, help="Give each group of wint4 a zero point.")
@option(HOW, "--kv-cache-dtype", metavar="NAME", default="auto", show_default=True,
        help="int8 or fp8: static scales for a KV cache of that type.")  # fmt: skip
@option(HOW, "--skip", metavar="PATTERNS", default="",
        help="Linears that stay as they are, such as '*.down,layers.0.*'.")  # fmt: skip
@option(HOW, "--calib", metavar="FILE", type=click.Path(path_type=Path),
        help="Texts to calibrate with: a text file or JSONL. Without it, a small set.")  # fmt: skip
@option(HOW, "--calib-tokens", "tokens", type=click.IntRange(min=2), default=8192,
        show_default=True, help="Most tokens of them.")  # fmt: skip
@option(HOW, "--window", type=click.IntRange(min=2), default=512, show_default=True,
        help="Most tokens in one sequence.")  # fmt: skip
@option(OUTPUT, "--output", metavar="DIR", required=True, type=click.Path(path_type=Path),
        help="Folder to write; it must not exist.")  # fmt: skip
@option(OUTPUT, "--format", "form", metavar="NAME", default="compressed-tensors",
        show_default=True, help="compressed-tensors or paddlenlp.")  # fmt: skip
@option(OUTPUT, "--restart", is_flag=True, help="Begin anew instead of continuing.")
@option(OUTPUT, "--json", "as_json", is_flag=True, help="Print the report as JSON.")
@option(OUTPUT, "--plot", metavar="FILE.png|svg", type=click.Path(path_type=Path),
        help="Draw each linear's error into a file.")  # fmt: skip
def command(
    output: Path,
    form: str,
    restart: bool,
    as_json: bool,
    plot: Path | None,
    **options: Any,
) -> int:
    """Quantise a model with calibration data and write it as a folder that qinfer run reads.

    Finished layers are kept in DIR.partial until all are done: the same command continues.
    """
    # numpy's small products are faster with one thread, beside Paddle's. It is imported below.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from qinfer.core.cli.plot import check_plot
    from qinfer.core.progress import TerminalProgress
    from qinfer.core.quantize.quantize import quantize
    from qinfer.core.quantize.settings import QuantizeSettings

    if plot:
        check_plot(plot)
    settings = QuantizeSettings(format=form, **options)
    report = quantize(settings, output, TerminalProgress(), restart=restart)
    click.echo(json.dumps(report, indent=1) if as_json else _summary(report, output))
    if plot:
        _draw(report, plot)
    return 0


def _summary(report: dict[str, Any], output: Path) -> str:
    """A row for each kind of linear, with the errors of its outputs."""
    from qinfer.core.cli.table import table

    by_role: dict[str, list[float]] = {}
    for name, said in report["linears"].items():
        if said["error"] is not None:
            by_role.setdefault(name.split(".", 2)[-1], []).append(said["error"])
    rows = [("linears", "count", "mean error", "largest")]
    rows += [
        (role, str(len(errors)), f"{sum(errors) / len(errors):.4f}", f"{max(errors):.4f}")
        for role, errors in by_role.items()
    ]
    skipped = ", ".join(report["skipped"]) or "none"
    few = sum(said.get("by_absmax", 0) for said in report["linears"].values())
    said = f"{few} experts' linears saw too few tokens: by absmax\n" if few else ""
    if report["kv_cache"]["dtype"]:
        errors = report["kv_cache"]["errors"]
        said += f"KV cache in {report['kv_cache']['dtype']}: error {max(errors):.4f} at most\n"
    return (
        f"{table(rows)}\n{said}not quantised: {skipped}\n"
        f"{report['tokens']:,} tokens, {report['seconds']:.0f} s; written: {output}"
    )


def _draw(report: dict[str, Any], path: Path) -> None:
    """The error of each linear over the layers, a line for each kind."""
    from qinfer.core.cli.plot import pyplot, save

    figure, axes = pyplot().subplots(figsize=(9, 3.6), layout="constrained")
    lines: dict[str, list[float]] = {}
    for name, said in report["linears"].items():
        lines.setdefault(name.split(".", 2)[-1], []).append(said["error"])
    for role, errors in lines.items():
        axes.plot(errors, marker=".", label=role)
    axes.set(xlabel="layer", ylabel="relative error of the outputs", ylim=(0, None))
    axes.legend()
    save(figure, path)
