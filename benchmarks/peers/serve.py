"""The measured side: load a model, then answer one order a line. Standard library only.

Every program is measured by this code, in a process and an interpreter of its own:

    out  {"event": "ready", "load_seconds": …, "threads": …, "versions": {…}, …}
    in   {"text": "…", "prompt": [ids], "new_tokens": 64}
    out  {"event": "run", "first_token_seconds": …, "decode_seconds": …, "decode_tokens": …, …}
    in   {"quit": true}
    out  {"event": "bye", "peak_memory_bytes": …}
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Arrived = Callable[[int], None]
"""To be called with the number of new tokens whenever some have come."""


class Order(NamedTuple):
    """One request: the prompt as text and as the same text's token ids, and how many new tokens
    to choose greedily, with no end of text before."""

    text: str
    prompt: list[int]
    new_tokens: int


Generate = Callable[[Order, Arrived], str]
"""Carries out an order and returns the new tokens' text."""

Load = Callable[[], tuple[Generate, dict[str, Any]]]
"""Load the model; returns how to run it, and what to say about it."""


def serve(load: Load) -> None:
    """Load, announce it, and carry out orders until told to quit."""
    emit = reserve_stdout()
    start = time.perf_counter()
    generate, facts = load()
    emit({"event": "ready", "load_seconds": time.perf_counter() - start, **facts})
    for line in sys.stdin:
        order = json.loads(line)
        if order.get("quit"):
            break
        emit(measure(generate, Order(**order)))
    emit({"event": "bye", "peak_memory_bytes": peak_memory()})


def measure(generate: Generate, order: Order) -> dict[str, Any]:
    """Time one request from outside, as its user would: by when tokens arrive.

    Decoding is timed from the first arrival to the last; what arrives first came out of prefill
    and doesn't count.
    """
    stamps: list[float] = []
    counts: list[int] = []

    def arrived(tokens: int) -> None:
        if tokens:
            stamps.append(time.perf_counter())
            counts.append(tokens)

    start = time.perf_counter()
    text = generate(order, arrived)
    if sum(counts) != order.new_tokens:
        raise RuntimeError(f"{sum(counts)} tokens came instead of {order.new_tokens}")
    return {
        "event": "run",
        "first_token_seconds": stamps[0] - start,
        "decode_seconds": stamps[-1] - stamps[0],
        "decode_tokens": sum(counts) - counts[0],
        "text": text,
    }


def status_bytes(field: str) -> int:
    """A memory figure of this process by its name in Linux's /proc/self/status, or 0."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def peak_memory() -> int:
    """Most bytes ever resident. ``ru_maxrss`` would include the parent's before exec on Linux."""
    unit = 1 if sys.platform == "darwin" else 1024
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reserve_stdout() -> Callable[[dict[str, Any]], None]:
    """Keep the real stdout for answers; whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    return emit
