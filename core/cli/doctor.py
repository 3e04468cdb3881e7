"""``qinfer doctor``: is this computer ready, and if not, what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import click

from qinfer.core import machine
from qinfer.core.check import check_all
from qinfer.core.child import python_command
from qinfer.core.discovery import discover
from qinfer.core.errors import Unsupported
from qinfer.core.paths import cache_dir

GIB = 1 << 30
LOAD_TIMEOUT = 120.0
"""Seconds Paddle and each plugin may take to load: a cold disk is slow, a hang is forever."""

PADDLE_REMEDY = "Run pip install 'qinfer-paddle[cpu]', or for a GPU see the README."

_PADDLE_PROBE = """
import json, os
answer = os.dup(1); os.dup2(2, 1)
from qinfer.core.device import import_paddle
paddle = import_paddle()
kinds = ["cpu"]
if paddle.is_compiled_with_cuda(): kinds.append(f"gpu ({paddle.device.cuda.device_count()} here)")
if paddle.is_compiled_with_xpu(): kinds.append("xpu")
kinds += paddle.device.get_all_custom_device_type() or []
os.write(answer, json.dumps(kinds).encode())
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; ``state`` is ok, warning or problem."""

    name: str
    value: str
    state: str = "ok"
    remedy: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (keys above).")
def command(as_json: bool) -> int:
    """Check that this computer is ready, and say what to do where it is not.

    Exits with 4 when there is a problem; warnings do not count. The JSON object has "ok" and
    "findings", each with "name", "value", "state" (ok, warning or problem) and "remedy".
    """
    findings: list[Finding] = []
    for examine in (_system, _packages, _paddle, _compilers, _cache, _demo, _plugins):
        for finding in examine():
            findings.append(finding)
            if not as_json:
                _print(finding)
    ok = all(finding.state != "problem" for finding in findings)
    if as_json:
        document = {"ok": ok, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    return 0 if ok else Unsupported.exit_code


def _print(finding: Finding) -> None:
    click.echo(f"{finding.state:8} {finding.name:12} {finding.value}")
    if finding.remedy:
        click.echo(f"{'':21} -> {finding.remedy}")


def _system() -> Iterator[Finding]:
    yield Finding(name="python", value=f"{platform.python_version()} ({sys.executable})")
    yield Finding(name="platform", value=platform.platform())
    features = machine.cpu_features()
    slow = platform.machine() in ("x86_64", "AMD64") and bool(features) and "avx2" not in features
    yield Finding(
        name="processor",
        value=f"{machine.cpu_name()}: {', '.join(features) or 'vector features unknown'}",
        state="warning" if slow else "ok",
        remedy="Without AVX2 inference is slow; only another computer helps." * slow,
    )
    yield Finding(name="cores", value=f"{machine.usable_cores()} of {os.cpu_count()} usable")
    total, free = machine.memory()
    low = 0 < free < 2 * GIB
    yield Finding(
        name="memory",
        value=f"{free / GIB:.1f} of {total / GIB:.1f} GiB free" if total else "unknown",
        state="warning" if low else "ok",
        remedy="Only the smallest models fit; close other programs." if low else "",
    )


def _packages() -> Iterator[Finding]:
    for name in ("numpy", "safetensors", "tokenizers"):
        found = _version(name)
        yield Finding(
            name=name,
            value=found or "not installed",
            state="ok" if found else "problem",
            remedy="" if found else "Run pip install --force-reinstall qinfer-paddle.",
        )


def _paddle() -> Iterator[Finding]:
    """Import Paddle in a process of its own: it takes seconds, and may crash."""
    names = ("paddlepaddle", "paddlepaddle-gpu", "paddlepaddle-xpu")
    found = next((f"{name} {_version(name)}" for name in names if _version(name)), "")
    try:
        child = subprocess.run(
            python_command(_PADDLE_PROBE),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOAD_TIMEOUT,
            check=True,
        )
        kinds = ", ".join(json.loads(child.stdout))
        yield Finding(name="paddle", value=f"{found or 'built from source'}, loads; for {kinds}")
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        why = f"{found} does not load (exit code {error.returncode}): {last}"
        yield _problem("paddle", why if found else "not installed", PADDLE_REMEDY)
    except (subprocess.TimeoutExpired, ValueError) as error:
        yield _problem("paddle", f"{found} does not load: {error}", PADDLE_REMEDY)


def _compilers() -> Iterator[Finding]:
    compiler = machine.cxx_compiler()
    yield Finding(
        name="c++",
        value=compiler or "no compiler found (nothing needs one yet)",
    )
    value = machine.cuda_compiler() or "not found (needed for NVIDIA GPUs only)"
    yield Finding(name="nvcc", value=value)


def _cache() -> Iterator[Finding]:
    folder = cache_dir()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        remedy = "Make it writable, or set QINFER_CACHE to a folder that is."
        yield _problem("cache", f"{folder} is not writable (see {there})", remedy)
        return
    free = shutil.disk_usage(there).free
    yield Finding(
        name="cache",
        value=f"{folder}, {free / GIB:.1f} GiB free",
        state="ok" if free > GIB else "warning",
        remedy="" if free > GIB else "Free some disk space, or set QINFER_CACHE elsewhere.",
    )


def _demo() -> Iterator[Finding]:
    try:
        from qinfer.core.checkpoint.demo import demo_status
    except ImportError:
        return
    try:
        yield Finding(name="demo model", value=demo_status())
    except Exception as error:  # noqa: BLE001 - a diagnosis must reach its end
        yield Finding(name="demo model", value=f"unknown: {error}", state="warning")


def _plugins() -> Iterator[Finding]:
    installed = discover()
    for line in installed.damaged:
        yield Finding(name="plugins", value=line, state="warning", remedy="Reinstall it.")
    results = list(zip(installed.plugins, check_all(installed.plugins, LOAD_TIMEOUT), strict=True))
    for record, result in results:
        if result.problems:
            yield Finding(
                name="plugins",
                value=f"{record.label}: {'; '.join(result.problems)}",
                state="warning" if result.ok else "problem",
                remedy=result.remedy or f"Upgrade or remove {record.dist}.",
            )
    working = sum(result.ok for _, result in results)
    yield Finding(name="plugins", value=f"{working} of {len(results)} load")


def _problem(name: str, value: str, remedy: str) -> Finding:
    return Finding(name=name, value=value, state="problem", remedy=remedy)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
