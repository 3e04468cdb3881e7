"""Compiling the native operators, once for each processor, compiler and Paddle version."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from qinfer.core.errors import Unsupported
from qinfer.core.machine import cpu_features, cpu_name, cxx_compiler
from qinfer.core.paths import cache_dir
from qinfer.core.store import is_intact, make_once

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "libqinfer_cpu.so"
KERNELS = ("cpu/linear.cc", "cpu/attention.cc")
BINDINGS = "bindings.cc"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-Wall", "-Wextra")
PADDLE_LIBRARIES = ("libpaddle.so", "libphi.so", "libphi_core.so", "libcommon.so", "libiomp5.so")
"""libiomp5 is the OpenMP library Paddle's MKL uses: sharing it, both share one set of threads."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """One way to compile: the compiler, the instruction set, and the folder the result is in."""

    compiler: str
    target: tuple[str, ...]
    paddle: Path
    folder: Path

    @property
    def library(self) -> Path:
        """The shared library, once it has been built."""
        return self.folder / LIBRARY

    @property
    def is_built(self) -> bool:
        """Whether it is there and undamaged (by size)."""
        return is_intact(self.folder)


def plan_build(target: tuple[str, ...] = ("-march=native",)) -> Build:
    """What would be built here, and where. Raises Unsupported without a C++ compiler.

    The folder's name is a digest of everything the result depends on: the sources, the flags, the
    compiler's version, Paddle's version and the processor.
    """
    compiler = cxx_compiler()
    if compiler is None:
        raise Unsupported(
            "there is no C++ compiler to build the native operators with",
            remedy="Install one (Debian, Ubuntu: apt-get install g++) or set CXX.",
        )
    spec = find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported(
            "PaddlePaddle is not installed",
            remedy="Install it: pip install 'qinfer-paddle[cpu]'",
        )
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    said = _run([compiler, "--version"]).stdout
    about = (*FLAGS, *target, said, version("paddlepaddle"), cpu_name(), *cpu_features())
    digest.update("\0".join(about).encode())
    return Build(
        compiler=compiler,
        target=target,
        paddle=Path(spec.submodule_search_locations[0]),
        folder=cache_dir() / "operators" / digest.hexdigest()[:20],
    )


def build(plan: Build, progress: Callable[[str], None] | None = None) -> Path:
    """Compile unless that has been done; the library's path.

    One process at a time compiles, a killed build leaves nothing behind. Raises Unsupported with
    the compiler's words.
    """
    if not plan.is_built and progress is not None:
        progress("Compiling the operators for this processor (once, about 15 seconds)")
    make_once(plan.folder, lambda folder: _compile(plan, folder), progress=progress)
    return plan.library


def _compile(plan: Build, folder: Path) -> None:
    paddle = plan.paddle
    include = [f"-I{paddle / 'include'}", f"-I{paddle / 'include' / 'third_party'}"]
    kernel = [plan.compiler, *FLAGS, *plan.target]
    binding = [
        plan.compiler,
        *(flag for flag in FLAGS if not flag.startswith("-W")),  # Paddle's headers warn
        "-O1",
        "-DPADDLE_NO_PYTHON",
        "-DPADDLE_WITH_CUSTOM_DEVICE",
        *include,
        f"-I{SOURCES}",
    ]
    jobs = [(kernel, name) for name in KERNELS] + [(binding, BINDINGS)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        objects = list(pool.map(lambda job: _object(job[0], job[1], folder), jobs))
    places = [f"-L{paddle / 'base'}", f"-L{paddle / 'libs'}"]
    libraries = [f"-l:{name}" for name in PADDLE_LIBRARIES]
    _checked(
        [
            plan.compiler,
            "-shared",
            "-o",
            str(folder / LIBRARY),
            *objects,
            *places,
            *libraries,
            "-Wl,--allow-shlib-undefined",
        ]
    )
    for name in objects:
        Path(name).unlink()


def _object(command: list[str], source: str, folder: Path) -> str:
    target = folder / f"{Path(source).stem}.o"
    _checked([*command, "-c", str(SOURCES / source), "-o", str(target)])
    return str(target)


def _checked(command: list[str]) -> None:
    done = _run(command)
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[:20])
        raise Unsupported(
            f"the native operators cannot be compiled: {command[0]} says\n{words}",
            remedy="Set CXX to another compiler (GCC 10 or newer, Clang 14 or newer).",
        )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        raise Unsupported(
            f"the C++ compiler {command[0]} cannot be run: {error}",
            remedy="Set CXX to a working compiler.",
        ) from error
