"""What is measured: each program's command and the bytes of weights it reads for a token."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import peer_script
from benchmarks.gguf_formats import readable_bytes, rewritten

SPARE_CONTEXT = 64
"""Beyond the prompt and its answer, so that the context's end stops no answer."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """``command`` is empty where something is missing, and ``missing`` says what."""

    name: str
    command: tuple[str, ...] = ()
    bytes_per_token: int = 0
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many parameters a decoded token has to read: of the layers' linears, of the head."""

    layers: int
    head: int

    @property
    def all(self) -> int:
        return self.layers + self.head


def read_parameters(model: Path) -> Parameters:
    """From a dense Qwen2's config.json; norms and biases are too small to matter."""
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    kv = hidden // heads * raw["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * raw["intermediate_size"]
    return Parameters(layers=layer * raw["num_hidden_layers"], head=hidden * raw["vocab_size"])


def all_programs(options: Namespace, model: Path) -> list[Program]:
    """This project's schemes, then every peer, also those that cannot be measured."""
    held = read_parameters(model)
    return [
        *_own(options, model, held),
        *_transformers(options, model, held),
        *_llama(options),
    ]


def _own(options: Namespace, model: Path, held: Parameters) -> list[Program]:
    # As the native operators hold a bfloat16 checkpoint, with the head in int8 where a scheme's
    # name says so. int4 has a float32 scale for every 64 weights.
    in_layers = {"none": 2, "wint8": 1, "wint4": 0.5625, "fp8": 1, "a8w8": 1, "a8w8c8": 1}
    script, threads = peer_script("qinfer_peer.py"), str(options.threads)
    return [
        Program(
            name=f"qinfer {scheme}",
            command=(sys.executable, script, str(model), scheme, threads),
            bytes_per_token=int(
                in_layers.get(scheme.removesuffix("-h8"), 0) * held.layers
                + (1 if scheme.endswith("-h8") else 2) * held.head
            ),
        )
        for scheme in options.schemes
    ]


def _transformers(options: Namespace, model: Path, held: Parameters) -> list[Program]:
    rows = [("float32", 4 * held.all), ("bfloat16", 2 * held.all)]
    if not options.transformers_python:
        missing = "no --transformers-python"
        return [Program(name=f"transformers {dtype}", missing=missing) for dtype, _ in rows]
    start = options.transformers_python, peer_script("transformers_peer.py"), str(model)
    return [
        Program(
            name=f"transformers {dtype}",
            command=(*start, dtype, str(options.threads)),
            bytes_per_token=size,
        )
        for dtype, size in rows
    ]


def _llama(options: Namespace) -> list[Program]:
    if not options.llama_python or not options.gguf:
        return [Program(name="llama.cpp", missing="no --llama-python and --gguf")]
    given = Path(options.gguf)
    files = {given.stem.rpartition(".")[2]: given}
    for name in options.gguf_formats:
        if name not in files:
            files[name] = rewritten(given, name, Path(options.cache))
    context = options.prompt_tokens + options.new_tokens + SPARE_CONTEXT
    sizes = options.threads, context, options.streams
    start = options.llama_python, peer_script("llama_peer.py")
    return [
        Program(
            name=f"llama.cpp {name}",
            command=(*start, str(path), *map(str, sizes)),
            bytes_per_token=readable_bytes(path),
        )
        for name, path in files.items()
    ]
