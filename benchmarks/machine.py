"""What the numbers were measured on, and how fast that machine reads memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qinfer.core.hardware.machine import cpu_features, cpu_name, memory, usable_cores

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Processor, memory, system, and the commit that is measured."""
    return {
        "processor": cpu_name(),
        "features": list(cpu_features()),
        "cores": usable_cores(),
        "memory_bytes": memory()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": " ".join(["python -m benchmarks.run", *map(_shown, sys.argv[1:])]),
    }


def commit() -> str:
    """The short hash of HEAD, with "-dirty" when files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def _shown(argument: str) -> str:
    """Paths by their last part: where things lie on this machine is nobody's business."""
    return Path(argument).name if "/" in argument else argument
