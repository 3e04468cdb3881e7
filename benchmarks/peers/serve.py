"""The measured side: load a model, then answer each line's requests. Standard library only.

Every program is measured by this code, in a process and an interpreter of its own:

    out  {"event": "ready", "load_seconds": …, "threads": …, "versions": {…}, …}
    in   {"requests": [{"text": "…", "prompt": [ids]}, …], "new_tokens": 64}
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Arrived = Callable[[int, int], None]
"""To be called with a request's place and the number of its new tokens whenever some have come."""


class Arrival(NamedTuple):
    """New tokens of the request at ``place``, and the clock when they came."""

    seconds: float
    place: int
    tokens: int


class Order(NamedTuple):
    """One request: the prompt as text and as the same text's token ids, and how many new tokens
    to choose greedily, with no end of text before."""

    text: str
    prompt: list[int]
    new_tokens: int


Generate = Callable[[Sequence[Order], Arrived], list[str]]
"""Carries out orders at once and returns the new tokens' text of each."""

Load = Callable[[], tuple[Generate, dict[str, Any]]]
"""Load the model; returns how to run it, and what to say about it."""


def serve(load: Load) -> None:
    """Load, announce it, and carry out orders until told to quit."""
    emit = reserve_stdout()
    start = time.perf_counter()
    generate, facts = load()
    emit({"event": "ready", "load_seconds": time.perf_counter() - start, **facts})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("quit"):
            break
        orders = [Order(**one, new_tokens=asked["new_tokens"]) for one in asked["requests"]]
        emit(measure(generate, orders))
    emit({"event": "bye", "peak_memory_bytes": peak_memory()})


def measure(generate: Generate, orders: Sequence[Order]) -> dict[str, Any]:
    """Time requests made at once from outside, as their users would: by when tokens arrive.

    The prompts' time ends when the last of the requests gets its first token. Decoding is timed
    from there to the last arrival; what arrived until then doesn't count for it.
    """
    arrivals: list[Arrival] = []

    def arrived(place: int, tokens: int) -> None:
        if tokens:
            arrivals.append(Arrival(time.perf_counter(), place, tokens))

    start = time.perf_counter()
    texts = generate(orders, arrived)
    for place, order in enumerate(orders):
        came = sum(arrival.tokens for arrival in arrivals if arrival.place == place)
        if came != order.new_tokens:
            raise RuntimeError(f"{came} tokens came instead of {order.new_tokens}")
    places = [arrival.place for arrival in arrivals]
    begun = max(places.index(place) for place in range(len(orders)))
    return {
        "event": "run",
        "first_token_seconds": arrivals[begun].seconds - start,
        "decode_seconds": arrivals[-1].seconds - arrivals[begun].seconds,
        "decode_tokens": sum(arrival.tokens for arrival in arrivals[begun + 1 :]),
        "total_seconds": arrivals[-1].seconds - start,
        "total_tokens": sum(arrival.tokens for arrival in arrivals),
        "text": texts[0],
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
