"""llama.cpp, through xllamacpp or llama-cpp-python: llama_peer.py GGUF THREADS"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from serve import Arrived, Generate, Order, serve

CONTEXT = 1024


def load() -> tuple[Generate, dict[str, Any]]:
    path, threads = sys.argv[1], int(sys.argv[2])
    return (_xllamacpp if find_spec("xllamacpp") else _llama_cpp_python)(path, threads)


def _xllamacpp(path: str, threads: int) -> tuple[Generate, dict[str, Any]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.cache_prompt = CONTEXT, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def generate(order: Order, arrived: Arrived) -> str:
        request = {
            "prompt": order.prompt,
            "n_predict": order.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        chunks = _Chunks(arrived)
        server.handle_completions(request, chunks.add)
        return chunks.text

    return generate, _facts("xllamacpp", threads, xllamacpp.get_system_info())


class _Chunks:
    """Counts one token a chunk. The last chunk brings no token but the usage, which settles the
    count: a token whose bytes are only part of a character comes with the next one."""

    def __init__(self, arrived: Arrived) -> None:
        self.arrived, self.seen, self.text = arrived, 0, ""

    def add(self, chunk: dict[str, Any]) -> None:
        if "choices" not in chunk:
            raise RuntimeError(f"llama.cpp: {chunk}")
        usage = chunk.get("usage")
        tokens = usage["completion_tokens"] - self.seen if usage else 1
        self.seen += tokens
        self.text += chunk["choices"][0]["text"]
        self.arrived(tokens)


def _llama_cpp_python(path: str, threads: int) -> tuple[Generate, dict[str, Any]]:
    import llama_cpp

    model = llama_cpp.Llama(
        path, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def generate(order: Order, arrived: Arrived) -> str:
        model.reset()  # or the last prompt's cache would be used again
        tokens: list[int] = []
        for token in model.generate(order.prompt, top_k=1, temp=0.0):
            tokens.append(token)
            arrived(1)
            if len(tokens) == order.new_tokens:
                break
        return model.detokenize(tokens).decode(errors="replace")

    system = llama_cpp.llama_print_system_info().decode()
    return generate, _facts("llama-cpp-python", threads, system)


def _facts(package: str, threads: int, system: str) -> dict[str, Any]:
    note = "llama.cpp build: " + " ".join(system.split())
    return {"threads": threads, "versions": {package: version(package)}, "note": note}


if __name__ == "__main__":
    serve(load)
