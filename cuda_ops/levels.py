"""Levels of x86 processors that a library of operators can be built for, to run on all that have
the level's instructions.

The first two are those of the x86-64 psABI, the others what oneDNN calls avx512_core_vnni and
avx512_core_bf16.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from qinfer.core.hardware.machine import cpu_flags

_V3 = (
    "pni ssse3 sse4_1 sse4_2 popcnt cx16 lahf_lm "  # x86-64-v2
    "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
)
_V4 = f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl"
_VNNI = f"{_V4} avx512_vnni"
_BF16 = f"{_VNNI} avx512vbmi avx512_bf16"


@dataclass(frozen=True, kw_only=True)
class Level:
    """A name, the compiler's flags for it, and what it needs of a processor, as Linux names it."""

    name: str
    target: tuple[str, ...]
    needs: tuple[str, ...]

    def lacks(self) -> tuple[str, ...]:
        """What this processor does not have of it, or Linux does not let programs use."""
        there = set(cpu_flags().split())
        return tuple(flag for flag in self.needs if flag not in there)


def _level(name: str, target: str, needs: str) -> Level:
    return Level(name=name, target=tuple(target.split()), needs=tuple(needs.split()))


_LEVELS = (
    _level("x86-64-v3", "-march=x86-64-v3", _V3),  # Intel since Haswell, AMD since Zen
    _level("x86-64-v4", "-march=x86-64-v4", _V4),  # Skylake-X
    _level("avx512-vnni", "-march=x86-64-v4 -mavx512vnni", _VNNI),  # Cascade Lake, Ice Lake
    # Zen 4, Sapphire Rapids. VBMI: the table of e4m3 is in registers.
    _level("avx512-bf16", "-march=x86-64-v4 -mavx512vnni -mavx512vbmi -mavx512bf16", _BF16),
)

LEVELS = {level.name: level for level in _LEVELS if platform.machine() in ("x86_64", "AMD64")}
"""By name, each for more than the one before; none where processors are of another kind."""
