"""Tiny Qwen2 models, generated and never stored: numpy only, so any interpreter can make them.

The goldens (``make_goldens.py``) and the tests build the same float32 weights from a seed::

    from goldens import tiny
    case = tiny.CASES["gqa"]
    folder = tiny.write_checkpoint(tmp_path / "model", case, dtype="bfloat16", shards=3)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from goldens.writer import write_checkpoint

__all__ = ["CASES", "Case", "prompt", "round_bfloat16", "weights", "write_checkpoint"]

LOGIT_SPREAD = 3.0
"""Standard deviation of the logits, roughly: wide enough that greedy choices are not near ties."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration. ``bfloat16``: there is also a golden of the bf16-rounded weights."""

    name: str
    hidden_size: int = 64
    intermediate_size: int = 160
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 320
    tied: bool = False
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 512
    prompt_length: int = 40
    seed: int = 0
    bfloat16: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def config(self) -> dict[str, Any]:
        """config.json as transformers 4 writes it, without the dtype."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": self.num_layers,
        }


_ALL = (
    Case(name="gqa", seed=11, bfloat16=True),
    Case(name="gqa_tied", seed=2, tied=True, rope_theta=1e4, bfloat16=True),
    # Square projections: the tensors' shapes can't tell the HF from the Paddle layout there.
    Case(name="mha", seed=13, num_kv_heads=4, intermediate_size=64, rope_theta=1e4),
    Case(name="mqa_tied", seed=4, num_kv_heads=1, tied=True, rms_norm_eps=1e-5),
    Case(
        name="odd",
        seed=15,
        hidden_size=60,
        num_heads=3,
        num_kv_heads=1,
        intermediate_size=77,
        vocab_size=131,
        num_layers=2,
        rms_norm_eps=1e-5,
    ),
    Case(
        name="odd_tied",
        seed=16,
        hidden_size=60,
        num_heads=3,
        num_kv_heads=3,
        intermediate_size=77,
        vocab_size=131,
        tied=True,
        rope_theta=1e4,
    ),
    # More tokens than a prefill chunk or a few cache blocks hold.
    Case(name="long", seed=7, vocab_size=160, num_layers=2, prompt_length=300, rope_theta=1e4),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL}


def weights(case: Case, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Float32 tensors in Hugging Face names and layout ([out, in]); with ``dtype="bfloat16"``
    rounded to what a bf16 checkpoint holds. A tied model has no ``lm_head.weight``."""
    rng = np.random.Generator(np.random.PCG64(case.seed))
    tensors = {"model.embed_tokens.weight": _embedding(rng, case)}
    for layer in range(case.num_layers):
        tensors |= _layer(rng, case, f"model.layers.{layer}.")
    tensors["model.norm.weight"] = _norm(rng, case)
    if not case.tied:
        tensors["lm_head.weight"] = _linear(rng, case.vocab_size, case.hidden_size, LOGIT_SPREAD)
    return {name: round_bfloat16(t) if dtype == "bfloat16" else t for name, t in tensors.items()}


def prompt(case: Case) -> list[int]:
    """``prompt_length`` token ids, the same every time."""
    rng = np.random.Generator(np.random.PCG64(case.seed + 1000))
    return [int(token) for token in rng.integers(0, case.vocab_size, case.prompt_length)]


def round_bfloat16(array: np.ndarray) -> np.ndarray:
    """Finite float32 values rounded to bfloat16 (nearest, ties to even), still as float32."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _layer(rng: np.random.Generator, case: Case, prefix: str) -> dict[str, np.ndarray]:
    hidden, inner, kv = case.hidden_size, case.intermediate_size, case.num_kv_heads * case.head_dim
    # A gain above 1 on q and k makes attention uneven, so that a wrong position shows.
    shapes = {
        "self_attn.q_proj": (hidden, hidden, 1.5),
        "self_attn.k_proj": (kv, hidden, 1.5),
        "self_attn.v_proj": (kv, hidden, 1.0),
        "self_attn.o_proj": (hidden, hidden, 1.0),
        "mlp.gate_proj": (inner, hidden, 1.0),
        "mlp.up_proj": (inner, hidden, 1.0),
        "mlp.down_proj": (hidden, inner, 1.5),
    }
    out = {f"{prefix}{name}.weight": _linear(rng, *shape) for name, shape in shapes.items()}
    for name, size in (("q", hidden), ("k", kv), ("v", kv)):
        out[f"{prefix}self_attn.{name}_proj.bias"] = _normal(rng, (size,), 0.3)
    for name in ("input_layernorm", "post_attention_layernorm"):
        out[f"{prefix}{name}.weight"] = _norm(rng, case)
    return out


def _embedding(rng: np.random.Generator, case: Case) -> np.ndarray:
    # Small as in real models: next to mean squares of 4e-4 a wrong rms epsilon shows.
    spread = LOGIT_SPREAD / case.hidden_size**0.5 if case.tied else 0.02
    return _normal(rng, (case.vocab_size, case.hidden_size), spread)


def _norm(rng: np.random.Generator, case: Case) -> np.ndarray:
    return np.float32(1) + _normal(rng, (case.hidden_size,), 0.1)


def _linear(rng: np.random.Generator, rows: int, columns: int, gain: float) -> np.ndarray:
    return _normal(rng, (rows, columns), gain / columns**0.5)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> np.ndarray:
    return (rng.standard_normal(shape) * spread).astype(np.float32)
