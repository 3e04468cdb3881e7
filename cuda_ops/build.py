"""Compiling the native operators, once for each processor, compiler and Paddle version."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qinfer.core.errors import BadCheckpoint, Unsupported
from qinfer.core.hardware.machine import cpu_flags, cpu_name, cxx_compiler
from qinfer.core.paths import cache_dir
from qinfer.core.store import is_intact, make_once

SOURCES = Path(__file__).parent / "csrc"
BINDINGS = "bindings*.cc"
LIBRARY = "libqinfer_cpu.so"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-Wno-psabi")
"""-Wno-psabi: GCC warns that vectors wider than the processor's are passed in another way than an
old GCC did. One set of flags compiles all there is, so nobody can disagree."""

NATIVE = ("-march=native",)
TARGET = "QINFER_TARGET"
"""Environment variable: flags that choose the instruction set, in place of NATIVE."""

PADDLE_LIBRARIES = ("libpaddle.so", "libphi.so", "libphi_core.so", "libcommon.so")
OPENMP = "libiomp5.so"
"""The OpenMP library Paddle's MKL uses: sharing it, both share one set of threads."""


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
        """Whether it is there and undamaged."""
        return is_intact(self.folder, verify=True)


def find_compiler(kind: str) -> str:
    """The C++ compiler; raises Unsupported saying which ``kind`` of operators wants it."""
    compiler = cxx_compiler()
    if compiler is None:
        raise Unsupported(
            f"there is no C++ compiler to build the {kind} operators with",
            remedy="Install one (Debian, Ubuntu: apt-get install g++) or set CXX.",
        )
    return compiler


def paddle_folder() -> Path:
    """Where the package is; raises Unsupported where it is not installed."""
    spec = find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported(
            "PaddlePaddle is not installed",
            remedy="Run pip install 'qinfer-paddle[cpu]' (in a clone: pip install '.[cpu]').",
        )
    return Path(spec.submodule_search_locations[0])


def plan_build() -> Build:
    """What would be built here, and where. Raises Unsupported without a C++ compiler.

    The folder's name is a digest of everything the result depends on: the sources, the flags, the
    compiler's version, Paddle's version and, unless TARGET names another, the processor. Raises
    Unsupported as well where TARGET has instructions that this processor does not have.
    """
    compiler, paddle = find_compiler("native"), paddle_folder()
    target = tuple(os.environ.get(TARGET, "").split()) or NATIVE
    digest = hashlib.sha256((paddle / "version" / "__init__.py").read_bytes())
    digest.update(sources_digest().encode())
    said = run_compiler([compiler, "--version"]).stdout
    is_native = any(flag.endswith("=native") for flag in target)
    processor = (cpu_name(), cpu_flags()) if is_native else ()
    if not is_native:
        _require_instructions(compiler, target)
    digest.update("\0".join((*FLAGS, *target, said, *processor)).encode())
    folder = cache_dir() / "operators" / digest.hexdigest()[:20]
    return Build(compiler=compiler, target=target, paddle=paddle, folder=folder)


def _require_instructions(compiler: str, target: tuple[str, ...]) -> None:
    """The system would end the process at the first instruction that the processor lacks."""
    lacking = _instructions(compiler, target) - _instructions(compiler, NATIVE)
    if lacking:
        raise Unsupported(
            f"{TARGET}={' '.join(target)} is for processors with {', '.join(sorted(lacking))}, "
            "which this one does not have",
            remedy="Unset it, or let it name less; -march=x86-64-v3 is AVX2.",
        )


def _instructions(compiler: str, target: tuple[str, ...]) -> set[str]:
    """What the compiler may use beyond the least, as its predefined macros name it: AVX512VNNI."""
    said = run_compiler([compiler, *target, "-dM", "-E", "-x", "c++", os.devnull]).stdout
    return set(re.findall(r"^#define __((?:AVX|FMA|F16C|ARM_FEATURE_)\w*?)_* 1$", said, re.M))


def sources_digest() -> str:
    """A digest of the sources of the CPU operators."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.*"), *(SOURCES / "cpu").iterdir()]):
        name = path.relative_to(SOURCES).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:20]


def build(
    plan: Build, progress: Callable[[str], None] | None = None, *, force: bool = False
) -> Path:
    """Compile unless that has been done, with ``force`` also then; the library's path.

    One process at a time compiles, a killed build leaves nothing behind. Raises Unsupported with
    the compiler's words, or when the cache cannot be written.
    """

    def fill(folder: Path) -> None:
        if progress is not None:
            progress("Compiling the operators for this processor (once, about half a minute)")
        _compile(plan, folder)

    try:
        make_once(plan.folder, fill, verify=True, force=force, progress=progress)
    except BadCheckpoint as error:
        raise Unsupported(
            f"the native operators cannot be built: {error.message}", remedy=error.remedy
        ) from error
    return plan.library


def _compile(plan: Build, folder: Path) -> None:
    target = _target(plan)
    kernel = [plan.compiler, *FLAGS, *target]
    include = plan.paddle / "include"
    binding = [
        plan.compiler,
        *FLAGS,
        "-O1",
        "-DPADDLE_NO_PYTHON",
        "-DPADDLE_WITH_CUSTOM_DEVICE",
        f"-isystem{include}",
        f"-isystem{include / 'third_party'}",
        f"-I{SOURCES}",
    ]
    kernels = sorted((SOURCES / "cpu").glob("*.cc"))
    jobs = [(kernel, source) for source in kernels]
    jobs += [(binding, source) for source in sorted(SOURCES.glob(BINDINGS))]
    with ThreadPoolExecutor(len(jobs)) as pool:
        objects = list(pool.map(lambda job: _object(job[0], job[1], folder), jobs))
    _link(plan, target, objects, folder / LIBRARY)
    for path in objects:
        path.unlink()


def _target(plan: Build) -> tuple[str, ...]:
    """The plan's, but none where the compiler does not know NATIVE, as some outside x86 don't."""
    check = [plan.compiler, *NATIVE, "-E", "-x", "c++", os.devnull]
    return () if plan.target == NATIVE and run_compiler(check).returncode else plan.target


def _object(command: list[str], source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    checked([*command, "-c", str(source), "-o", str(target)])
    return target


def _link(plan: Build, target: tuple[str, ...], objects: list[Path], library: Path) -> None:
    places = (plan.paddle / "base", plan.paddle / "libs")
    there = [n for n in (*PADDLE_LIBRARIES, OPENMP) if any((p / n).exists() for p in places)]
    checked(
        [
            plan.compiler,
            "-shared",
            *target,
            *map(str, objects),
            *shared_runtime(plan.compiler),
            *(f"-L{place}" for place in places),
            *(f"-l:{name}" for name in there),
            *(() if OPENMP in there else ("-fopenmp",)),  # Paddle without MKL: the compiler's own
            "-Wl,--allow-shlib-undefined",
            "-o",
            str(library),
        ]
    )


def shared_runtime(compiler: str) -> list[str]:
    """The C++ library to link first: the shared one, where the compiler has a file of its name.

    Where only the static one is set up for linking, a library gets a copy of its own, whose
    streams are not initialised: every error message crashed the process.
    """
    found = run_compiler([compiler, "-print-file-name=libstdc++.so.6"]).stdout.strip()
    return [found] if Path(found).is_absolute() else []


def checked(command: list[str]) -> None:
    """Run a compiler; raises Unsupported with its words if it fails."""
    done = run_compiler(command)
    if done.returncode == 0:
        return
    words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    words = words or [f"nothing, and ends with {done.returncode}"]
    first = next((line for line in words if "error" in line.lower()), words[0])
    more = "".join(f"\n{line}" for line in words[:20] if len(words) > 1)
    raise Unsupported(
        f"the native operators cannot be compiled; {command[0]} says: {first}{more}",
        remedy="Set CXX to another compiler (GCC 10 or newer, Clang 14 or newer).",
    )


def run_compiler(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler and keep what it says; raises Unsupported where it cannot be run."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, check=False
        )
    except OSError as error:
        raise Unsupported(
            f"the C++ compiler {command[0]} cannot be run: {error}",
            remedy="Set CXX to a working compiler.",
        ) from error
