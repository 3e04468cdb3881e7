"""The NVIDIA cards of this computer, asked of the driver's own library. Standard library only."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Thread


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU as CUDA numbers them: ``index`` counts what CUDA_VISIBLE_DEVICES leaves."""

    index: int
    name: str
    capability: tuple[int, int]
    memory_total: int
    memory_free: int
    driver: str


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def cards() -> list[Card]:
    """The cards CUDA programs see here; none without a driver that works."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2():
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        every = [_handle(nvml, number) for number in range(count.value)]
        uuids = [_text(nvml.nvmlDeviceGetUUID, handle) for handle in every]
        chosen = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), uuids)
        driver = _text(nvml.nvmlSystemGetDriverVersion)
        return [_card(nvml, index, every[n], driver) for index, n in enumerate(chosen)]
    finally:
        nvml.nvmlShutdown()


def wake(index: int) -> Thread:
    """Have the driver prepare a card for this process, half a second's work, in a thread. What goes
    wrong there goes wrong again, with a message, where the card is used.
    """

    def prepare() -> None:
        try:
            cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return
        device, context = ctypes.c_int(), ctypes.c_void_p()
        if not cuda.cuInit(0) and not cuda.cuDeviceGet(ctypes.byref(device), index):
            cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)

    thread = Thread(target=prepare, daemon=True)
    thread.start()
    return thread


def visible(choice: str | None, uuids: Sequence[str]) -> list[int]:
    """Which cards ``CUDA_VISIBLE_DEVICES`` leaves, in its order, as CUDA reads it: numbers or
    beginnings of UUIDs, up to the first that names none.
    """
    if choice is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for part in map(str.strip, choice.split(",")):
        named = [n for n, uuid in enumerate(uuids) if part and uuid.startswith(part)]
        number = int(part) if part.isdigit() else named[0] if len(named) == 1 else -1
        if not 0 <= number < len(uuids) or number in found:
            break
        found.append(number)
    return found


def _handle(nvml: ctypes.CDLL, number: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle))
    return handle


def _text(ask: object, *arguments: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(96)
    assert callable(ask)
    return "" if ask(*arguments, buffer, ctypes.c_uint(96)) else buffer.value.decode()


def _card(nvml: ctypes.CDLL, index: int, handle: ctypes.c_void_p, driver: str) -> Card:
    memory, major, minor = _Memory(), ctypes.c_int(), ctypes.c_int()
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    return Card(
        index=index,
        name=_text(nvml.nvmlDeviceGetName, handle),
        capability=(major.value, minor.value),
        memory_total=memory.total,
        memory_free=memory.free,
        driver=driver,
    )
