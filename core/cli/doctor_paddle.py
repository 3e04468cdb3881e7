"""The part of ``qinfer doctor`` that loads Paddle: in processes of its own, as it may crash."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qinfer.core.child import python_command
from qinfer.core.cli.build_ops import plan_gpu_operators
from qinfer.core.cli.finding import Finding, problem, warning
from qinfer.core.errors import QinferError
from qinfer.core.hardware.nvidia import cards
from qinfer.core.types import NEVER_BUILT

GIB = 1 << 30

LOAD_TIMEOUT = 120.0
"""Seconds Paddle and each plugin may take to load: a cold disk is slow, a hang is forever."""

REMEDY = (
    "Run pip install 'qinfer-paddle[cpu]' (in a clone: pip install '.[cpu]'); "
    "for a GPU see the README."
)

_QUIETLY = """
import json, os
answer = os.dup(1); os.dup2(2, 1)
"""

_PADDLE = """
from qinfer.core.hardware.start_paddle import import_paddle
paddle = import_paddle()
found = ["cpu"]
if paddle.is_compiled_with_cuda(): found.append(f"gpu ({paddle.device.cuda.device_count()} here)")
if paddle.is_compiled_with_xpu(): found.append("xpu")
found += paddle.device.get_all_custom_device_type() or []
"""

_OPERATORS = """
from qinfer.core.cli.build_ops import plan_operators
from qinfer.core.errors import QinferError
from qinfer.core.types import RunConfig
try:
    plan = plan_operators(RunConfig().backend)
    def told(build):
        names = ("name", "is_built", "reason", "lacks", "loaded")
        return {"library": str(build.library), **{name: getattr(build, name) for name in names}}
    found = told(plan) | {"portable": [told(build) for build in plan.portable]}
except QinferError as error:
    found = {"reason": error.message, "remedy": error.remedy}
"""

_ANSWER = "\nos.write(answer, json.dumps(found).encode())\n"


def paddle_findings() -> Iterator[Finding]:
    """Whether Paddle loads, and for which devices it was built."""
    names = ("paddlepaddle", "paddlepaddle-gpu", "paddlepaddle-xpu")
    found = next((f"{name} {installed(name)}" for name in names if installed(name)), "")
    try:
        kinds = ", ".join(_ask(_PADDLE))
        yield Finding(name="paddle", value=f"{found or 'built from source'}, loads; for {kinds}")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        why = f"{found} does not load (exit code {error.returncode}): {last}"
        yield problem("paddle", why if found else "not installed", REMEDY)
    except (subprocess.TimeoutExpired, ValueError) as error:
        yield problem("paddle", f"{found} does not load: {error}", REMEDY)


def operator_findings() -> Iterator[Finding]:
    """Whether the native operators are built or can be; compiles nothing."""
    name = "operators"
    try:
        found = _ask(_OPERATORS)
    except (subprocess.SubprocessError, ValueError) as error:
        yield warning(name, f"unknown: {error}", "See the findings about paddle and plugins.")
        return
    if "remedy" in found:
        yield warning(name, f"cannot be built: {found['reason']}", found["remedy"])
        return
    yield Finding(name=name, value=_loaded(found))
    if any(build["reason"] != NEVER_BUILT for build in found["portable"]):
        yield from map(_portable_finding, found["portable"])


def _loaded(found: dict[str, Any]) -> str:
    """What a run loads, or when it is built."""
    if found["loaded"]:
        return str(found["loaded"])
    if found["is_built"]:
        return f"built for this processor at {found['library']}"
    when = "at first use, which takes about half a minute, or by qinfer build-ops"
    return f"not built yet; built {when}"


def _portable_finding(build: dict[str, Any]) -> Finding:
    """Whether the operators for a level of processors are built, and run here."""
    lacks = ", ".join(build["lacks"])
    runs = f"not for this processor, which lacks {lacks}" if lacks else "runs here"
    name = build["name"]
    if build["is_built"]:
        return Finding(name=name, value=f"built; {runs}")
    if build["reason"] == NEVER_BUILT:
        return Finding(name=name, value=f"not built; {runs}")
    remedy = f"Run qinfer build-ops --arch {name}; until then a run passes over it."
    return warning(name, f"not usable: {build['reason']}; {runs}", remedy)


def gpu_findings() -> Iterator[Finding]:
    """The cards with their driver, and whether the operators for them are built or can be."""
    found = cards()
    for card in found:
        major, minor = card.capability
        free, total = card.memory_free / GIB, card.memory_total / GIB
        yield Finding(
            name=f"gpu:{card.index}",
            value=f"{card.name}, compute capability {major}.{minor}, {free:.1f} of {total:.1f} GiB "
            f"free, driver {card.driver}",
        )
    if not found:
        yield Finding(name="gpu", value="no NVIDIA card, or no driver")
        return
    try:
        plan = plan_gpu_operators()
    except QinferError as error:
        yield warning("gpu operators", f"cannot be built: {error.message}", error.remedy)
        return
    when = "at first use, which takes about a minute, or by qinfer build-ops --device gpu"
    value = f"built at {plan.library}" if plan.is_built else f"{plan.reason}; built {when}"
    yield Finding(name="gpu operators", value=value)


def installed(name: str) -> str:
    """The installed version of a distribution, or nothing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _ask(code: str) -> Any:
    """What the code leaves in ``found``. Raises SubprocessError, or ValueError for no answer."""
    child = subprocess.run(
        python_command(_QUIETLY + code + _ANSWER),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LOAD_TIMEOUT,
        check=True,
    )
    return json.loads(child.stdout)
