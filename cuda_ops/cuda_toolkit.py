"""What CUDA there is to compile with: the compiler, its folder, cuBLAS, and for which cards."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.hardware.nvidia import cards
from qinfer.cuda_ops.compiler import run_compiler

LEAST_CUDA = 12


def architectures(given: Sequence[str]) -> tuple[str, ...]:
    """The compute capabilities to compile for, such as "90": those given, else the cards'. Raises
    UsageError for no number of one, Unsupported for one that is too old or where there is no card.
    """
    wrong = [name for name in given if not re.fullmatch(r"[1-9]\d{1,2}", name)]
    if wrong:
        raise UsageError(
            f"unknown architecture {wrong[0]!r}",
            remedy="Give the compute capability without its point, such as 90 for an H100.",
        )
    found = given or {f"{card.capability[0]}{card.capability[1]}" for card in cards()}
    if not found:
        raise Unsupported(
            "no NVIDIA card is found here to build the GPU operators for",
            remedy="Check the driver (nvidia-smi), or name a card with qinfer build-ops --arch.",
        )
    old = [name for name in found if int(name) < 80]
    if old:
        raise Unsupported(
            f"the GPU operators need compute capability 8.0 or newer, not {old[0]}",
            remedy="Use --device cpu, or leave that card out with CUDA_VISIBLE_DEVICES.",
        )
    return tuple(sorted(found))


def version(nvcc: str) -> str:
    """What the compiler says of itself. Raises Unsupported for one that is too old."""
    said = run_compiler([nvcc, "--version"]).stdout
    found = re.search(r"release (\d+)", said)
    if found is None or int(found[1]) < LEAST_CUDA:
        raise Unsupported(
            f"{nvcc} is not a CUDA compiler of version {LEAST_CUDA} or newer",
            remedy="Install the CUDA toolkit 12 or newer and set CUDA_HOME to its folder.",
        )
    return said


def toolkit(nvcc: str) -> Path:
    """The folder of headers and libraries, as nvcc itself finds it: it may be started by a link or
    a script from elsewhere.
    """
    said = run_compiler([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull])
    found = re.search(r"^#\$ TOP=(.*)$", said.stderr + said.stdout, re.MULTILINE)
    return Path(found[1].strip() if found else Path(nvcc).parents[1]).resolve()


def cublas(cuda: Path) -> tuple[Path, Path] | None:
    """Headers of cuBLASLt and the library beside them: the toolkit's, or the pip package's."""
    folders = [(cuda / "include", cuda / "lib64")]
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for root in sorted(Path(place).glob("c*")):  # cu13, cublas
            folders.append((root / "include", root / "lib"))
    for include, library in folders:
        found = sorted(library.glob("libcublasLt.so*")) if library.is_dir() else []
        if (include / "cublasLt.h").exists() and found:
            return include, found[0]
    return None
