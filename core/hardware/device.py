"""Choosing the device that a run computes on."""

from __future__ import annotations

from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.hardware.machine import cpu_features, cpu_name, cuda_compiler, memory
from qinfer.core.hardware.nvidia import Card, cards
from qinfer.core.types import DeviceInfo


def open_device(name: str) -> DeviceInfo:
    """The device called ``auto``, ``cpu`` or ``gpu[:N]``, with its memory as it is now.

    ``auto`` is the first card where there is one and a compiler for it, else the processor.
    """
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "gpu") or (number and not (kind == "gpu" and number.isdigit())):
        raise UsageError(f"unknown device {name!r}", remedy="Use auto, cpu, gpu or gpu:N.")
    found = [] if kind == "cpu" else cards()
    if kind == "gpu" or (found and cuda_compiler()):
        return _open_card(found, int(number or 0))
    total, free = memory()
    return DeviceInfo(
        kind="cpu",
        name=cpu_name(),
        memory_total=total,
        memory_free=free,
        features=frozenset(cpu_features()),
    )


def _open_card(found: list[Card], index: int) -> DeviceInfo:
    if not found:
        raise Unsupported(
            "there is no NVIDIA card here, or no driver for it",
            remedy="Check with nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu.",
        )
    if index >= len(found):
        raise UsageError(
            f"there is no gpu:{index}: {len(found)} of them can be used, from gpu:0 on",
            remedy="See nvidia-smi and CUDA_VISIBLE_DEVICES.",
        )
    card = found[index]
    return DeviceInfo(
        kind="gpu",
        index=index,
        name=card.name,
        memory_total=card.memory_total,
        memory_free=card.memory_free,
        features=frozenset({f"sm_{card.capability[0]}{card.capability[1]}"}),
        compute_dtypes=("bfloat16", "float16"),
    )
