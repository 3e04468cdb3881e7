"""``qinfer convert``: Paddle's pickle files as safetensors files."""

from __future__ import annotations

from pathlib import Path

import click

from qinfer.core.cli.options import MODEL, GroupedCommand, option


@click.command("convert", cls=GroupedCommand, context_settings={"max_content_width": 100})
@option(MODEL, "--model", metavar="FOLDER", required=True, type=click.Path(path_type=Path),
        help="Folder with .pdparams files.")  # fmt: skip
@option("Output", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path),
        help="Folder to write; it must not exist.")  # fmt: skip
def command(model: Path, output: Path) -> int:
    """Write the arrays of .pdparams files as safetensors, which the other commands read.

    The files are not unpickled: whatever is no plain dictionary of arrays is refused.
    """
    from qinfer.core.checkpoint.convert import convert_pdparams

    convert_pdparams(model, output, click.echo)
    click.echo(f"written: {output}")
    return 0
