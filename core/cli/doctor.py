"""``qinfer doctor``: is this computer ready, and if not, what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from qinfer.core.cli.doctor_paddle import (
    GIB,
    LOAD_TIMEOUT,
    gpu_findings,
    installed,
    operator_findings,
    paddle_findings,
)
from qinfer.core.cli.finding import Finding, problem, warning
from qinfer.core.errors import Unsupported
from qinfer.core.hardware import machine
from qinfer.core.paths import cache_dir
from qinfer.core.registry.check import check_all
from qinfer.core.registry.discovery import discover


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (keys above).")
def command(as_json: bool) -> int:
    """Check that this computer is ready, and say what to do where it is not.

    Exits with 4 when there is a problem; warnings do not count. The JSON object has "ok" and
    "findings", each with "name", "value", "state" (ok, warning or problem) and "remedy".
    """
    findings: list[Finding] = []
    for examine in EXAMINATIONS:
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
        found = installed(name)
        yield Finding(
            name=name,
            value=found or "not installed",
            state="ok" if found else "problem",
            remedy="" if found else "Run pip install --force-reinstall qinfer-paddle.",
        )


def _compilers() -> Iterator[Finding]:
    if compiler := machine.cxx_compiler():
        yield Finding(name="c++", value=" ".join(compiler))
    elif wanted := machine.cxx_wanted():
        lost = f"CXX names {wanted}, and there is no such program"
        yield warning("c++", lost, "Correct or unset it: the usual compilers are found on PATH.")
    else:
        lost = "not found (operators that are not built yet need one)"
        yield warning("c++", lost, "Install g++ (Debian, Ubuntu: apt-get install g++) or set CXX.")
    value = machine.cuda_compiler() or "not found (needed for NVIDIA GPUs only)"
    yield Finding(name="nvcc", value=value)


def _cache() -> Iterator[Finding]:
    folder = cache_dir()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        remedy = "Make it writable, or set QINFER_CACHE to a folder that is."
        if folder.is_dir():  # an image's, say
            yield warning("cache", f"{folder} is not writable: what is there is used", remedy)
        else:
            yield problem("cache", f"{folder} is not writable (see {there})", remedy)
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
        from qinfer.core.demo.folder import demo_status
    except ImportError:
        return
    try:
        yield Finding(name="demo model", value=demo_status())
    except Exception as error:  # noqa: BLE001 - a diagnosis must reach its end
        yield Finding(name="demo model", value=f"unknown: {error}", state="warning")


def _plugins() -> Iterator[Finding]:
    found = discover()
    for line in found.damaged:
        yield Finding(name="plugins", value=line, state="warning", remedy="Reinstall it.")
    results = list(zip(found.plugins, check_all(found.plugins, LOAD_TIMEOUT), strict=True))
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


EXAMINATIONS = (
    _system,
    _packages,
    paddle_findings,
    _compilers,
    operator_findings,
    gpu_findings,
    _cache,
    _demo,
    _plugins,
)
