"""Drawing with matplotlib, which is not always installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qinfer.core.errors import Unsupported, UsageError, cannot_write

ENDINGS = (".png", ".svg")


def pyplot() -> Any:
    """The plotting library, drawing into files only. Raises Unsupported where there is none."""
    try:
        import matplotlib
    except ImportError as error:
        raise Unsupported(
            f"--plot needs matplotlib: {error}", remedy="pip install 'qinfer-paddle[plot]'"
        ) from error
    matplotlib.use("agg")
    from matplotlib import pyplot as found

    return found


def check_plot(path: Path) -> None:
    """Raise before the work, not after it, where nothing can be drawn into this file: Unsupported
    without the library, UsageError for another kind of file or a folder that is not there.
    """
    pyplot()
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"--plot {path} is neither a PNG nor an SVG file",
            remedy=f"Let its name end in {' or '.join(ENDINGS)}.",
        )
    if not path.parent.is_dir():
        raise UsageError(
            f"--plot {path}: there is no folder {path.parent}", remedy="Make it first."
        )


def save(figure: Any, path: Path) -> None:
    """Write a figure as what its name ends in; it appears in one step. Raises QinferError."""
    temporary = path.with_name(f".{path.name}.new{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        remedy = "Name a file in a folder that has room and that you may write to."
        raise cannot_write(path, error, remedy=remedy) from None
    print(f"drawn: {path}", file=sys.stderr)  # noqa: T201
