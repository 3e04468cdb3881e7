"""Compiling the CUDA operators and the device plugin, for the cards that are here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qinfer.core.errors import BadCheckpoint, Unsupported
from qinfer.core.hardware.machine import cuda_compiler, usable_cores
from qinfer.core.paths import cache_dir
from qinfer.core.store import is_intact, make_once
from qinfer.core.types import OperatorBuild
from qinfer.cuda_ops import cuda_toolkit
from qinfer.cuda_ops.build import PADDLE_LIBRARIES, paddle_folder
from qinfer.cuda_ops.build_facts import Facts, digest, files_digest, why_again, write
from qinfer.cuda_ops.compiler import Command, checked, find_compiler, shared_runtime, version

HERE = Path(__file__).parent
KERNELS = HERE / "csrc" / "cuda"
SHARED = HERE / "csrc" / "infer.h"  # with the CPU's operators
PLUGIN = HERE / "device"
OPERATORS, DEVICE = "libqinfer_cuda.so", "libqinfer_nv.so"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-Wno-psabi")
CUDA_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC")


@dataclass(frozen=True, kw_only=True)
class CudaBuild:
    """One way to compile: the tools, the cards' architectures, and where the results are.

    Two folders, because Paddle opens every library in the one that holds the plugin.
    """

    nvcc: str
    compiler: Command
    architectures: tuple[str, ...]
    paddle: Path
    cuda: Path
    cublas: tuple[Path, Path] | None
    operators: Path
    device: Path
    facts: Facts

    @property
    def library(self) -> Path:
        """The operators, once they have been built."""
        return self.operators / OPERATORS

    @property
    def is_built(self) -> bool:
        """Whether both are there and undamaged."""
        return is_intact(self.operators, verify=True) and is_intact(self.device, verify=True)

    @property
    def reason(self) -> str:
        """Why it has to be built; empty if it has not."""
        folders = self.operators.parent.glob("*-cuda")
        return "" if self.is_built else why_again(self.facts, folders)


def plan_cuda(architectures: Sequence[str] = ()) -> CudaBuild:
    """What would be built here, and where. Raises Unsupported without nvcc, a C++ compiler, Paddle
    or, where no ``architectures`` (such as "90") are given, a card.
    """
    nvcc = cuda_compiler()
    if nvcc is None:
        raise Unsupported(
            "there is no CUDA compiler (nvcc) to build the GPU operators with",
            remedy="Install the CUDA toolkit 12 or newer and set CUDA_HOME to its folder.",
        )
    compiler, paddle = find_compiler("GPU"), paddle_folder()
    wanted = cuda_toolkit.architectures(architectures)
    said = cuda_toolkit.version(nvcc)
    cuda = cuda_toolkit.toolkit(nvcc)
    cublas = cuda_toolkit.cublas(cuda)
    facts = {
        "the sources": sources_digest(),
        "Paddle": (paddle / "version" / "__init__.py").read_text(encoding="utf-8"),
        "the CUDA compiler": said,
        "the C++ compiler": version(compiler),
        "cuBLAS": str(cublas),
        "the cards": " ".join(wanted),
        "the flags": " ".join((*FLAGS, *CUDA_FLAGS)),
    }
    name = digest(facts)
    return CudaBuild(
        nvcc=nvcc,
        compiler=compiler,
        architectures=wanted,
        paddle=paddle,
        cuda=cuda,
        cublas=cublas,
        operators=cache_dir() / "operators" / f"{name}-cuda",
        device=cache_dir() / "operators" / f"{name}-nv",
        facts=facts,
    )


def sources_digest() -> str:
    """A digest of the sources of the CUDA operators and the device plugin."""
    return files_digest([*KERNELS.iterdir(), *PLUGIN.iterdir(), SHARED])


def build_cuda(
    plan: CudaBuild, progress: Callable[[str], None] | None = None, *, force: bool = False
) -> Path:
    """Compile unless that has been done, with ``force`` also then; the operators' path.

    One process at a time compiles, a killed build leaves nothing behind. Raises Unsupported with
    the compilers' words, or when the cache cannot be written.
    """

    def operators(folder: Path) -> None:
        if progress is not None:
            names = ", ".join(f"sm_{name}" for name in plan.architectures)
            progress(f"Compiling the GPU operators for {names} (once, about a minute)")
        _compile_operators(plan, folder)

    try:
        make_once(
            plan.device, lambda folder: _compile_plugin(plan, folder), verify=True, force=force
        )
        make_once(plan.operators, operators, verify=True, force=force, progress=progress)
    except BadCheckpoint as error:
        raise Unsupported(
            f"the GPU operators cannot be built: {error.message}", remedy=error.remedy
        ) from error
    return plan.library


def _includes(plan: CudaBuild) -> list[str]:
    folder = plan.paddle / "include"
    return [
        "-DPADDLE_NO_PYTHON",
        "-DPADDLE_WITH_CUSTOM_DEVICE",
        f"-isystem{folder}",
        f"-isystem{folder / 'third_party'}",
        f"-isystem{plan.cuda / 'include'}",
    ]


def _runtime(plan: CudaBuild) -> list[str]:
    folders = [plan.cuda / "lib64", plan.cuda / "lib"]
    links = [*(f"-L{p}" for p in folders), "-lcudart_static", "-lpthread", "-ldl", "-lrt"]
    return [*shared_runtime(plan.compiler), *links]


def _compile_plugin(plan: CudaBuild, folder: Path) -> None:
    sources = [str(path) for path in sorted(PLUGIN.glob("*.cc"))]
    flags = [*FLAGS, "-fvisibility=hidden", *_includes(plan), "-shared"]
    checked([*plan.compiler, *flags, *sources, "-o", str(folder / DEVICE), *_runtime(plan)])


def _program(compiler: Command) -> str:
    """The compiler itself, without its launcher and arguments: nvcc takes no more."""
    has_launcher = len(compiler) > 1 and not compiler[1].startswith("-")
    return compiler[1] if has_launcher else compiler[0]


def _compile_operators(plan: CudaBuild, folder: Path) -> None:
    # "a": with the instructions that only this architecture has (csrc/cuda/hopper.cuh)
    names = [f"{name}a" if name == "90" else name for name in plan.architectures]
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    kernel = [plan.nvcc, *CUDA_FLAGS, *codes, "-ccbin", _program(plan.compiler)]
    binding = [*plan.compiler, *FLAGS, *_includes(plan)]
    links = []
    if plan.cublas is not None:
        include, library = plan.cublas
        binding += ["-DQINFER_CUBLASLT", f"-isystem{include}"]
        links = [str(library), f"-Wl,-rpath,{library.parent}"]
    jobs = [(kernel, path) for path in sorted(KERNELS.glob("*.cu"))]
    jobs += [(binding, path) for path in sorted(KERNELS.glob("*.cc"))]

    def compile_one(job: tuple[list[str], Path]) -> Path:
        command, source = job
        target = folder / f"{source.name}.o"
        checked([*command, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(usable_cores()) as pool:
        objects = list(pool.map(compile_one, jobs))
    places = (plan.paddle / "base", plan.paddle / "libs")
    there = [n for n in PADDLE_LIBRARIES if any((p / n).exists() for p in places)]
    checked(
        [
            *plan.compiler,
            "-shared",
            *map(str, objects),
            *links,
            *(f"-L{place}" for place in places),
            *(f"-l:{name}" for name in there),
            *_runtime(plan),
            "-Wl,--allow-shlib-undefined",
            "-o",
            str(folder / OPERATORS),
        ]
    )
    for path in objects:
        path.unlink()
    write(plan.facts, folder)


def device_folder(progress: Callable[[str], None] | None) -> str:
    """Build what a run on a GPU needs; the folder for CUSTOM_DEVICE_ROOT. Called before Paddle is
    imported, through the entry-point group ``qinfer.devices``.
    """
    plan = plan_cuda()
    build_cuda(plan, progress)
    return str(plan.device)


def plan_operators(
    architectures: Sequence[str], progress: Callable[[str], None] | None
) -> OperatorBuild:
    """What ``qinfer build-ops --device gpu`` and ``qinfer doctor`` work with."""
    plan = plan_cuda(architectures)
    return OperatorBuild(
        library=plan.library,
        is_built=plan.is_built,
        reason=plan.reason,
        build=lambda force: build_cuda(plan, progress, force=force),
    )
