"""``qinfer export``: a model as a folder that runs without its plugin and checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qinfer.core.cli.options import MODEL, GroupedCommand, option


@click.command("export", cls=GroupedCommand, context_settings={"max_content_width": 100})
@option(MODEL, "--model", metavar="FOLDER|HUB_ID", default="",
        help="Checkpoint; without it, the demo.")  # fmt: skip
@option(MODEL, "--plugin", metavar="NAME", default="",
        help="Model family's plugin. Without it, config.json decides.")  # fmt: skip
@option(MODEL, "--quant", metavar="NAME", default="auto", show_default=True,
        help="Quantisation scheme; auto is the checkpoint's own.")  # fmt: skip
@option(MODEL, "--backend", metavar="NAME", default="static", show_default=True,
        help="What is to run the model.")  # fmt: skip
@option(MODEL, "--device", metavar="NAME", default="auto", show_default=True,
        help="What it is to run on: auto, cpu, gpu, gpu:1")  # fmt: skip
@option(MODEL, "--dtype", default="auto", show_default=True,
        type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
        help="Precision of the parameters; auto is the checkpoint's.")  # fmt: skip
@option(MODEL, "--kv-cache-dtype", default="auto", show_default=True,
        type=click.Choice(["auto", "int8", "fp8"]),
        help="What keys and values are held in; auto is the scheme's choice.")  # fmt: skip
@option(MODEL, "--max-model-len", type=click.IntRange(min=0), default=0,
        help="Longest prompt and answer together, in tokens.")  # fmt: skip
@option(MODEL, "--threads", type=click.IntRange(min=0), default=0,
        help="Threads to compute with.")  # fmt: skip
@option(MODEL, "--require-kernels", is_flag=True,
        help="Stop where the native operators cannot be built, instead of exporting for the slow "
        "reference ones.")  # fmt: skip
@option("Output", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path),
        help="Folder to write; it must not exist.")  # fmt: skip
def command(output: Path, **options: Any) -> int:
    """Export a model as a folder: qinfer run --model DIR is then all it takes.

    The folder needs neither the model's plugin nor its checkpoint. What was chosen here, its
    manifest qinfer.json says: qinfer info DIR shows it.
    """
    from qinfer.core.cli.show import size
    from qinfer.core.export.make import export_model
    from qinfer.core.progress import TerminalProgress
    from qinfer.core.types import RunConfig

    export_model(RunConfig(**options), output, TerminalProgress())
    written = sum(path.stat().st_size for path in output.iterdir())
    click.echo(f"written: {output} ({size(written)})")
    return 0
