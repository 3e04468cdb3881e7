"""Tiny checkpoints of two linears and a norm, written with the safetensors library."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from qinfer.core.types import (
    LinearSpec,
    ModelConfig,
    QuantPlan,
    Scheme,
    WeightRule,
)

DTYPES = {"bfloat16": ml_dtypes.bfloat16}

HIDDEN, WIDTH, VOCAB = 8, 12, 10


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    save_file({name: array.copy(order="C") for name, array in arrays.items()}, path)
    return path


def raw_file(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensors(dtype: str = "float32", hidden: int = HIDDEN, width: int = WIDTH) -> dict[str, Any]:
    """Hugging Face layout. Integers that every dtype holds exactly."""
    kind = DTYPES.get(dtype, dtype)
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.integers(-100, 100, shape).astype(kind)

    return {
        "model.embed_tokens.weight": draw(VOCAB, hidden),
        "model.q_proj.weight": draw(hidden, hidden),
        "model.k_proj.weight": draw(hidden // 2, hidden),
        "model.q_proj.bias": draw(hidden),
        "model.k_proj.bias": draw(hidden // 2),
        "model.down_proj.weight": draw(hidden, width),
        "model.norm.weight": draw(hidden),
    }


def as_paddle(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same checkpoint as PaddleNLP would name and lay it out."""
    return {
        name.replace("model.", "qwen2."): array.T if "_proj.weight" in name else array
        for name, array in arrays.items()
    }


def rules(hidden: int = HIDDEN, width: int = WIDTH) -> list[WeightRule]:
    return [rule for prefix in ("model.", "qwen2.") for rule in _rules(prefix, hidden, width)]


def _rules(prefix: str, hidden: int, width: int) -> Sequence[WeightRule]:
    embed, half = (f"{prefix}embed_tokens.weight",), hidden // 2
    fused = {"op": "fuse", "sizes": (hidden, half)}

    def both(kind: str) -> tuple[str, ...]:
        return tuple(f"{prefix}{name}_proj.{kind}" for name in "qk")

    return [
        WeightRule(target="embed", source=embed, shape=(VOCAB, hidden)),
        WeightRule(target="head.weight", source=embed, shape=(VOCAB, hidden), linear=True),
        WeightRule(
            target="qk.weight",
            source=both("weight"),
            shape=(hidden + half, hidden),
            linear=True,
            **fused,
        ),
        WeightRule(target="qk.bias", source=both("bias"), shape=(hidden + half,), **fused),
        WeightRule(
            target="down.weight",
            source=(f"{prefix}down_proj.weight",),
            shape=(hidden, width),
            linear=True,
        ),
        WeightRule(target="norm", source=(f"{prefix}norm.weight",), shape=(hidden,)),
        WeightRule(target="", source=("*.inv_freq",), op="skip"),
    ]


QK = LinearSpec(name="qk", role="qkv", in_features=8, out_features=12, bias=True, parts=(8, 4))
DOWN = LinearSpec(name="down", role="down", in_features=12, out_features=8)
HEAD = LinearSpec(name="head", role="lm_head", in_features=8, out_features=10)
PLAIN = Scheme(name="plain", weight_dtype="float32")
PLAN = QuantPlan(by_layer={"qk": PLAIN, "down": PLAIN, "head": PLAIN}, skipped={"head": "why"})


def config(**changes: Any) -> ModelConfig:
    fields = {
        "model_type": "qwen2",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
    }
    return ModelConfig(**{**fields, **changes})


class FakeHooks:
    """A scheme that keeps the weight as it is; a layer is its spec and parameters."""

    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: np.ndarray) -> dict[str, Any]:
        assert weight.shape == (spec.out_features, spec.in_features)
        assert weight.flags.c_contiguous
        return {"weight": weight}

    def build_linear(self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Any]) -> Any:
        return spec, scheme, dict(params)


def place(array: np.ndarray, dtype: str) -> np.ndarray:
    return np.array(array, dtype=DTYPES.get(dtype, dtype) if dtype else None)
