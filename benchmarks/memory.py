"""Does loading stay within its memory? python -m benchmarks.memory [--layers 24] [SCHEME ...]

Writes a random bfloat16 checkpoint of Qwen2-0.5B's shape in shards and loads it in a process of its
own with each scheme. Passes (exit code 0) when the peak of resident memory, above what the process
held before loading, is at most the loaded weights + the largest tensor + 300 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.child import peer_script

SPARE_BYTES = 300_000_000
HIDDEN, INNER, KV, VOCABULARY = 896, 4864, 128, 151936
SHARD_LAYERS = 6


def main() -> None:
    """Write, load, compare; exit with 1 if any scheme takes too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("schemes", nargs="*", default=["none", "wint8", "wint4", "fp8"])
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick look")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qinfer-memory-") as folder:
        largest = write_model(Path(folder), options.layers)
        results = {scheme: probe(Path(folder), scheme) for scheme in options.schemes}
    show(results, largest)
    if not all(fits(result, largest) for result in results.values()):
        raise SystemExit(1)


def write_model(folder: Path, layers: int) -> int:
    """A tied random model, a few layers a shard; returns the bytes of its largest tensor."""
    shards = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}]
    for start in range(0, layers, SHARD_LAYERS):
        shards.append({})
        for layer in range(start, min(start + SHARD_LAYERS, layers)):
            shards[-1] |= layer_shapes(f"model.layers.{layer}.")
    weight_map = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, shapes)
        weight_map |= dict.fromkeys(shapes, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", config(layers))
    return 2 * VOCABULARY * HIDDEN


def layer_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """Qwen2's tensors of one layer."""
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.k_proj.weight": (KV, HIDDEN),
        "self_attn.v_proj.weight": (KV, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (INNER, HIDDEN),
        "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
        "self_attn.q_proj.bias": (HIDDEN,),
        "self_attn.k_proj.bias": (KV,),
        "self_attn.v_proj.bias": (KV,),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random values in bfloat16."""
    import ml_dtypes
    from safetensors.numpy import save_file

    rng = np.random.Generator(np.random.PCG64(len(shapes)))
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        tensors[name] = values.astype(ml_dtypes.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def config(layers: int) -> dict[str, Any]:
    """Qwen2-0.5B's config.json, but for the number of layers."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "use_sliding_window": False,
    }


def probe(folder: Path, scheme: str) -> dict[str, Any]:
    """Load in a process of its own."""
    command = [sys.executable, peer_script("memory_probe.py"), str(folder), scheme]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{scheme}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fits(result: dict[str, Any], largest: int) -> bool:
    """Whether the peak stays within what is allowed."""
    return bool(result["peak"] <= result["weights"] + largest + SPARE_BYTES)


def show(results: dict[str, dict[str, Any]], largest: int) -> None:
    """A table in MB."""
    table = Table("scheme")
    for name in ("weights", "allowed", "peak", "peak, anonymous", "after", "load s", "verdict"):
        table.add_column(name, justify="right")
    for scheme, r in results.items():
        allowed = r["weights"] + largest + SPARE_BYTES
        sizes = (r["weights"], allowed, r["peak"], r["anonymous_peak"], r["after"])
        verdict = "fits" if fits(r, largest) else "TOO MUCH"
        shown = [f"{size / 1e6:.0f}" for size in sizes]
        table.add_row(scheme, *shown, f"{r['seconds']:.1f}", verdict)
    Console().print(
        f"MB of 10^6 bytes above the process before; largest tensor {largest / 1e6:.0f}"
    )
    Console().print(table)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
