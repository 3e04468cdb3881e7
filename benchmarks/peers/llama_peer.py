"""llama.cpp, through xllamacpp or llama-cpp-python: llama_peer.py GGUF THREADS CONTEXT STREAMS

CONTEXT is what one request needs; STREAMS is how many come at once, each with a slot of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from itertools import repeat
from typing import Any

from serve import Arrived, Generate, Order, serve


def load() -> tuple[Generate, dict[str, Any]]:
    path, (threads, context, streams) = sys.argv[1], map(int, sys.argv[2:])
    if find_spec("xllamacpp"):
        return _xllamacpp(path, threads, context, streams)
    if streams > 1:
        raise RuntimeError("several streams at once need xllamacpp")
    return _llama_cpp_python(path, threads, context)


def _xllamacpp(
    path: str, threads: int, context: int, streams: int
) -> tuple[Generate, dict[str, Any]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.cache_prompt = context * streams, streams, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    pool = ThreadPoolExecutor(streams)

    def answer(place: int, order: Order, arrived: Arrived) -> str:
        request = {
            "prompt": order.prompt,
            "n_predict": order.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        chunks = _Chunks(place, arrived)
        server.handle_completions(request, chunks.add)
        return chunks.text

    def generate(orders: Sequence[Order], arrived: Arrived) -> list[str]:
        """Each in a thread of its own: the server batches them as they come."""
        return list(pool.map(answer, range(len(orders)), orders, repeat(arrived)))

    return generate, _facts("xllamacpp", threads, xllamacpp.get_system_info())


class _Chunks:
    """Counts a request's tokens, one a chunk. The last chunk brings no token but the usage, which
    settles the count: a token whose bytes are only part of a character comes with the next one."""

    def __init__(self, place: int, arrived: Arrived) -> None:
        self.place, self.arrived, self.seen, self.text = place, arrived, 0, ""

    def add(self, chunk: dict[str, Any]) -> None:
        if "choices" not in chunk:
            raise RuntimeError(f"llama.cpp: {chunk}")
        usage = chunk.get("usage")
        tokens = usage["completion_tokens"] - self.seen if usage else 1
        self.seen += tokens
        self.text += chunk["choices"][0]["text"]
        self.arrived(self.place, tokens)


def _llama_cpp_python(path: str, threads: int, context: int) -> tuple[Generate, dict[str, Any]]:
    import llama_cpp

    model = llama_cpp.Llama(
        path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def generate(orders: Sequence[Order], arrived: Arrived) -> list[str]:
        [order] = orders
        model.reset()  # or the last prompt's cache would be used again
        tokens: list[int] = []
        for token in model.generate(order.prompt, top_k=1, temp=0.0):
            tokens.append(token)
            arrived(0, 1)
            if len(tokens) == order.new_tokens:
                break
        return [model.detokenize(tokens).decode(errors="replace")]

    system = llama_cpp.llama_print_system_info().decode()
    return generate, _facts("llama-cpp-python", threads, system)


def _facts(package: str, threads: int, system: str) -> dict[str, Any]:
    note = "llama.cpp build: " + " ".join(system.split())
    return {"threads": threads, "versions": {package: version(package)}, "note": note}


if __name__ == "__main__":
    serve(load)
