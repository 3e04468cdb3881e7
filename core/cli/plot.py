"""Drawing with matplotlib, which is not always installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qinfer.core.errors import Unsupported


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


def save(figure: Any, path: Path) -> None:
    """Write a figure as what its name ends in; it appears in one step."""
    temporary = path.with_name(f".{path.name}.new{path.suffix}")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)
    print(f"drawn: {path}", file=sys.stderr)  # noqa: T201
