"""What a figure of a card needs beside it."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from benchmarks.machine import commit


def describe(measured: str | None = None) -> dict[str, Any]:
    """The card, its driver, the commit that is measured (``measured``, for a copy of the sources
    that git knows nothing of), and the command.
    """
    from qinfer.core.hardware.nvidia import cards

    spec = sys.modules["__main__"].__spec__
    name = spec.name if spec else sys.argv[0]
    card = cards()[0]
    return {
        "card": card.name,
        "driver": card.driver,
        "commit": measured or commit(),
        "command": shlex.join(["python", "-m", name, *sys.argv[1:]]),
    }
