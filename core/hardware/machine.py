"""What this computer is: processor, memory, compilers. Standard library only."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

_X86 = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")
FEATURES = (*_X86, *_ARM)
"""Vector instructions worth naming, as /proc/cpuinfo spells them."""


def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Which of FEATURES this processor has; none where there is no /proc/cpuinfo."""
    flags = set(cpu_flags().split())
    return tuple(name for name in FEATURES if name in flags)


def cpu_flags() -> str:
    """All that the system lists of the processor's features."""
    return _cpuinfo("flags") or _cpuinfo("Features")


def is_amd() -> bool:
    """Whether AMD made the processor (or licensed its design)."""
    return _cpuinfo("vendor_id") in ("AuthenticAMD", "HygonGenuine")


def usable_cores() -> int:
    """Cores this process may run on (``taskset`` and containers can leave it fewer)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Total and available memory in bytes, within this container's limit; 0 is unknown."""
    total, free = _meminfo("MemTotal"), _meminfo("MemAvailable")
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit and limit < total:
        total, free = limit, min(free, max(limit - used, 0))
    return total, free


def cxx_compiler() -> tuple[str, ...]:
    """The command that compiles C++: $CXX and no other, which may have a launcher or flags
    ("ccache g++"), else the first of the usual names on PATH; empty where there is none.
    """
    wanted = tuple(os.environ.get("CXX", "").split())
    for program, *more in [wanted] if wanted else [("g++",), ("c++",), ("clang++",)]:
        if path := shutil.which(program):
            return (path, *more)
    return ()


def cxx_wanted() -> str:
    """The program that $CXX names first; empty if it is not set."""
    return (os.environ.get("CXX", "").split() or [""])[0]


def cuda_compiler() -> str | None:
    """Path of nvcc: below $CUDA_HOME or $CUDA_PATH, on PATH, or in /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    names = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    return next(filter(None, map(shutil.which, [*names, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)


def _cpuinfo(key: str) -> str:
    """The first processor's value of that key."""
    return _lookup("/proc/cpuinfo", key)


def _meminfo(key: str) -> int:
    """Bytes; the file has "KEY:  NUMBER kB"."""
    return int((_lookup("/proc/meminfo", key).split() or ["0"])[0]) * 1024


def _lookup(path: str, key: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return ""


def _number(path: Path) -> int:
    """A file's number; 0 without the file, and for "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
