"""Random checkpoints of a published model's shape: what speed and memory depend on, no download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARD_LAYERS = 6
GRID = np.float32(2**14)
"""Values are multiples of 1 / GRID. Then float16 holds all that bfloat16 does: none is so small
that it would lose bits there."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of a tied Qwen2 that decide its size."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def largest_tensor_bytes(self) -> int:
        """The embedding's."""
        return 2 * self.vocabulary * self.hidden


SHAPES = {
    "qwen2-0.5b": Shape(layers=24, hidden=896, heads=14, kv_heads=2, inner=4864, vocabulary=151936),
    "qwen2-7b": Shape(layers=28, hidden=3584, heads=28, kv_heads=4, inner=18944, vocabulary=152064),
}
"""As published, but that the second's vocabulary head is the embedding too."""


def kept_model(name: str, tokenizer: Path, folder: Path) -> Path:
    """The checkpoint of a shape in ``SHAPES``, with a tokenizer; made once and kept."""
    target = folder / f"{name}-random"
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_model(part, SHAPES[name])
        write_tokenizer(part, tokenizer, SHAPES[name].vocabulary)
        part.replace(target)
    return target


def write_model(folder: Path, shape: Shape) -> None:
    """The weights in bfloat16, a few layers a shard, and the config.json."""
    shards = list(_shards(shape))
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shapes, seed=number)
        weight_map |= dict.fromkeys(shapes, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    _write_json(folder / "config.json", _config(shape))


def write_tokenizer(folder: Path, source: Path, vocabulary: int) -> None:
    """``source``'s tokenizer, which has fewer tokens than the model: the others are added as
    "<unusedN>". No text is split into them, and the model may well choose them."""
    raw = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    known = raw["model"]["vocab"]
    known |= {f"<unused{number}>": number for number in range(len(known), vocabulary)}
    _write_json(folder / "tokenizer.json", raw)
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)


def _shards(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    hidden = shape.hidden
    yield {"model.embed_tokens.weight": (shape.vocabulary, hidden), "model.norm.weight": (hidden,)}
    for start in range(0, shape.layers, SHARD_LAYERS):
        shard: dict[str, tuple[int, ...]] = {}
        for layer in range(start, min(start + SHARD_LAYERS, shape.layers)):
            shard |= _layer(shape, f"model.layers.{layer}.")
        yield shard


def _layer(shape: Shape, prefix: str) -> dict[str, tuple[int, ...]]:
    """Qwen2's tensors of one layer."""
    hidden, inner = shape.hidden, shape.inner
    kv = hidden // shape.heads * shape.kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.bias": (kv,),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Values around 0, of norms around 1, with a deviation of 0.02."""
    import ml_dtypes
    from safetensors.numpy import save_file

    rng = np.random.Generator(np.random.PCG64(seed))
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        values = np.round(values * GRID) / GRID + np.float32(name.endswith("norm.weight"))
        tensors[name] = values.astype(ml_dtypes.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def _config(shape: Shape) -> dict[str, Any]:
    """As Qwen2-0.5B's config.json, but for the shape and the demo tokenizer's special tokens."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_sliding_window": False,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
