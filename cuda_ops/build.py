"""Compiling the native operators: for the processor at hand, or for a level of processors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qinfer.core.errors import BadCheckpoint, Unsupported, UsageError
from qinfer.core.hardware.machine import cpu_flags, cpu_name
from qinfer.core.paths import cache_dir
from qinfer.core.store import is_intact, make_once
from qinfer.cuda_ops.build_facts import Facts, digest, files_digest, why_again, write
from qinfer.cuda_ops.compiler import (
    Command,
    checked,
    find_compiler,
    instructions,
    run_compiler,
    shared_runtime,
    version,
)
from qinfer.cuda_ops.levels import LEVELS, Level

SOURCES = Path(__file__).parent / "csrc"
BINDINGS = "bindings*.cc"
LIBRARY = "libqinfer_cpu.so"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-Wno-psabi")
"""-Wno-psabi: GCC warns that vectors wider than the processor's are passed in another way than an
old GCC did. One set of flags compiles all there is, so nobody can disagree."""

NATIVE = ("-march=native",)
TARGET = "QINFER_TARGET"
"""Environment variable: the name of a level, or flags that choose the instruction set, in place of
NATIVE."""

PADDLE_LIBRARIES = ("libpaddle.so", "libphi.so", "libphi_core.so", "libcommon.so")
OPENMP = "libiomp5.so"
"""The OpenMP library Paddle's MKL uses: sharing it, both share one set of threads."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """One way to compile: for which processors ("native", a level's name, or "target" for what
    TARGET says), the instruction set, what it depends on, and the folder the result is in.
    """

    name: str
    target: tuple[str, ...]
    paddle: Path
    facts: Facts
    level: Level | None = None

    @property
    def folder(self) -> Path:
        """In the cache, named by everything the result depends on."""
        return cache_dir() / "operators" / f"{digest(self.facts)}-{self.name}"

    @property
    def library(self) -> Path:
        """The shared library, once it has been built."""
        return self.folder / LIBRARY

    @property
    def whom(self) -> str:
        """The processors it is for, in a message."""
        return self.level.name if self.level else "this processor"

    @property
    def is_built(self) -> bool:
        """Whether it is there and undamaged."""
        return is_intact(self.folder, verify=True)

    @property
    def reason(self) -> str:
        """Why it has to be built; empty if it has not."""
        earlier = self.folder.parent.glob(f"*-{self.name}")
        return "" if self.is_built else why_again(self.facts, earlier)


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
    """What would be built here: for this processor, or what TARGET says.

    A build for this processor depends on the compiler's version and the processor's name and flags
    as well. Raises Unsupported without a C++ compiler and where TARGET has instructions that this
    processor does not have, UsageError where TARGET is neither a level nor flags.
    """
    target = tuple(os.environ.get(TARGET, "").split())
    if target and not target[0].startswith("-"):
        return _plan_named(" ".join(target))
    compiler = find_compiler("native")
    is_native = not target or any(flag.endswith("=native") for flag in target)
    if not is_native:
        lacking = instructions(compiler, target) - instructions(compiler, NATIVE)
        _require_none(sorted(lacking))
    facts = _facts(target or NATIVE) | {
        "the compiler": version(compiler),
        "the processor": f"{cpu_name()} {cpu_flags()}" if is_native else "",
    }
    name = "target" if target else "native"
    return Build(name=name, target=target or NATIVE, paddle=paddle_folder(), facts=facts)


def plan_level(level: Level) -> Build:
    """What would be built for the level. Any compiler's result will do: it may be gone by now."""
    facts = _facts(level.target)
    paddle = paddle_folder()
    return Build(name=level.name, target=level.target, paddle=paddle, facts=facts, level=level)


def _plan_named(name: str) -> Build:
    if name not in LEVELS:
        raise UsageError(
            f"{TARGET} is {name!r}, which is no level of processors",
            remedy=f"Levels are {', '.join(LEVELS)}; a compiler's flags begin with -.",
        )
    _require_none(LEVELS[name].lacks())
    return plan_level(LEVELS[name])


def _require_none(lacking: Sequence[str]) -> None:
    """The system would end the process at the first instruction that the processor lacks."""
    if lacking:
        raise Unsupported(
            f"{TARGET}={os.environ[TARGET]} is for processors with {', '.join(lacking)}, "
            "which this one does not have",
            remedy="Unset it, or let it name less; x86-64-v3 is AVX2.",
        )


def _facts(target: Sequence[str]) -> dict[str, str]:
    version = paddle_folder() / "version" / "__init__.py"
    return {
        "the sources": sources_digest(),
        "Paddle": version.read_text(encoding="utf-8"),
        "the flags": " ".join((*FLAGS, *target)),
    }


def sources_digest() -> str:
    """A digest of the sources of the CPU operators."""
    return files_digest([*SOURCES.glob("*.*"), *(SOURCES / "cpu").iterdir()])[:20]


def build(
    plan: Build, progress: Callable[[str], None] | None = None, *, force: bool = False
) -> Path:
    """Compile unless that has been done, with ``force`` also then; the library's path.

    One process at a time compiles, a killed build leaves nothing behind. Raises Unsupported with
    the compiler's words, or when the cache cannot be written.
    """

    def fill(folder: Path) -> None:
        compiler = find_compiler("native")
        if progress is not None:
            progress(f"Compiling the operators for {plan.whom} (once, about half a minute)")
        _compile(compiler, plan, folder)

    try:
        make_once(plan.folder, fill, verify=True, force=force, progress=progress)
    except BadCheckpoint as error:
        raise Unsupported(
            f"the native operators cannot be built: {error.message}", remedy=error.remedy
        ) from error
    return plan.library


def _compile(compiler: Command, plan: Build, folder: Path) -> None:
    target = _target(compiler, plan)
    kernel = [*compiler, *FLAGS, *target]
    include = plan.paddle / "include"
    binding = [
        *compiler,
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
    _link(compiler, [*target, *map(str, objects)], plan.paddle, folder / LIBRARY)
    for path in objects:
        path.unlink()
    write(plan.facts, folder)


def _target(compiler: Command, plan: Build) -> tuple[str, ...]:
    """The plan's, but none where the compiler does not know NATIVE, as some outside x86 don't."""
    check = [*compiler, *NATIVE, "-E", "-x", "c++", os.devnull]
    return () if plan.target == NATIVE and run_compiler(check).returncode else plan.target


def _object(command: list[str], source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    checked([*command, "-c", str(source), "-o", str(target)])
    return target


def _link(compiler: Command, inputs: list[str], paddle: Path, library: Path) -> None:
    places = (paddle / "base", paddle / "libs")
    there = [n for n in (*PADDLE_LIBRARIES, OPENMP) if any((p / n).exists() for p in places)]
    checked(
        [
            *compiler,
            "-shared",
            *inputs,
            *shared_runtime(compiler),
            *(f"-L{place}" for place in places),
            *(f"-l:{name}" for name in there),
            *(() if OPENMP in there else ("-fopenmp",)),  # Paddle without MKL: the compiler's own
            "-Wl,--allow-shlib-undefined",
            "-o",
            str(library),
        ]
    )
