"""Tiny models of every family, generated and never stored, with numpy only.

The goldens (``make_goldens.py``) and the tests build the same float32 weights from a seed::

    from goldens import tiny
    case = tiny.CASES["gqa"]
    folder = tiny.write_checkpoint(tmp_path / "model", case, dtype="bfloat16", shards=3)
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from goldens.writer import write_checkpoint

__all__ = ["CASES", "Case", "prompt", "round_bfloat16", "weights", "write_checkpoint"]

DATA = Path(__file__).parent / "data"
"""Where the golden answers are."""

LOGIT_SPREAD = 3.0
"""Standard deviation of the logits, roughly: wide enough that greedy choices are not near ties."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration. ``bfloat16``: there is also a golden of the bf16-rounded weights.
    ``more``: further keys of config.json. ``width``: an explicit head_dim."""

    name: str
    family: str = "qwen2"
    more: Mapping[str, Any] = field(default_factory=dict)
    width: int = 0
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
        return self.width or self.hidden_size // self.num_heads

    @property
    def qk_norm(self) -> bool:
        return self.family.startswith("qwen3")

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        step = self.more.get("decoder_sparse_step", 1)
        dense = self.more.get("mlp_only_layers", ())
        return "num_experts" in self.more and layer not in dense and (layer + 1) % step == 0

    @property
    def config(self) -> dict[str, Any]:
        """config.json as transformers 4 writes it, without the dtype."""
        if self.family == "qwen":
            return self._first_config
        return {
            "architectures": [ARCHITECTURES[self.family]],
            "model_type": self.family,
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
            **({"head_dim": self.width} if self.width else {}),
            **deepcopy(self.more),  # transformers writes into what it is given
        }

    @property
    def _first_config(self) -> dict[str, Any]:
        """As the first Qwen's configuration_qwen.py writes it."""
        return {
            "architectures": [ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 2 * self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "kv_channels": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "layer_norm_epsilon": self.rms_norm_eps,
            "rotary_emb_base": self.rope_theta,
            "rotary_pct": 1.0,
            "no_bias": True,
            "scale_attn_weights": True,
            "tie_word_embeddings": False,
            "emb_dropout_prob": 0.0,
            "attn_dropout_prob": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "use_flash_attn": "auto",
            **self.more,
        }


ARCHITECTURES = {
    "qwen": "QWenLMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

_SHARED = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 64,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
_LONG = {"seq_length": 32, "use_dynamic_ntk": True, "use_logn_attn": True}
_FIRST: dict[str, Any] = {
    "family": "qwen",
    "num_kv_heads": 4,
    "vocab_size": 160,
    "num_layers": 2,
    "rope_theta": 1e4,
    "max_position_embeddings": 256,
    "more": _LONG,
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
    Case(name="qwen3", family="qwen3", seed=61, width=32, vocab_size=160),
    Case(name="qwen3_tied", family="qwen3", seed=22, width=20, vocab_size=131, tied=True),
    Case(name="moe", family="qwen2_moe", seed=23, vocab_size=160, more=_SHARED),
    Case(
        name="moe_norm",
        family="qwen2_moe",
        seed=24,
        vocab_size=160,
        num_layers=4,
        more=_SHARED | {"norm_topk_prob": True, "decoder_sparse_step": 2},
    ),
    Case(
        name="moe_dense",
        family="qwen2_moe",
        seed=25,
        vocab_size=160,
        num_kv_heads=4,
        more=_SHARED | {"mlp_only_layers": [1]},
    ),
    Case(name="qwen3_moe", family="qwen3_moe", seed=26, width=32, vocab_size=160, more=_EXPERTS),
    Case(
        name="yarn",
        seed=27,
        vocab_size=160,
        num_layers=2,
        rope_theta=1e4,
        max_position_embeddings=32,
        prompt_length=104,  # and 24 new ones: four times the trained length
        more={"rope_scaling": _YARN},
    ),
    Case(
        name="yarn_exact",
        seed=28,
        vocab_size=160,
        num_layers=2,
        max_position_embeddings=128,
        more={"rope_scaling": _YARN | {"truncate": False, "attention_factor": 1.25}},
    ),
    Case(
        name="linear",
        seed=29,
        vocab_size=160,
        num_layers=2,
        more={"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    ),
    Case(
        name="dynamic",
        seed=32,
        vocab_size=160,
        num_layers=2,
        rope_theta=1e4,
        max_position_embeddings=32,
        prompt_length=104,  # and 24 new ones: a power of two times 32
        more={"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    ),
    Case(name="qwen", seed=53, prompt_length=30, **_FIRST),  # goes on past seq_length
    Case(name="qwen_long", seed=74, prompt_length=100, **_FIRST),
    Case(
        name="qwen_plain",
        seed=55,
        prompt_length=60,
        **_FIRST | {"more": {**_LONG, "use_dynamic_ntk": False, "use_logn_attn": False}},
    ),
    Case(name="window", seed=50, vocab_size=160, more=_WINDOW),
    Case(name="qwen3_window", family="qwen3", seed=51, width=16, vocab_size=160, more=_WINDOW),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL}

WIDE = Case(
    name="wide", hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, vocab_size=320
)
WIDE_EXPERTS = Case(
    name="wide_experts",
    family="qwen2_moe",
    hidden_size=256,
    num_layers=2,
    vocab_size=320,
    more=CASES["moe"].more | {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
)
"""Wide enough for groups of 128 inputs in every linear. They have no goldens."""


def weights(case: Case, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Float32 tensors in Hugging Face names and layout ([out, in]); with ``dtype="bfloat16"``
    rounded to what a bf16 checkpoint holds. A tied model has no ``lm_head.weight``."""
    rng = np.random.Generator(np.random.PCG64(case.seed))
    tensors = {"model.embed_tokens.weight": _embedding(rng, case)}
    for layer in range(case.num_layers):
        tensors |= _layer(rng, case, layer)
    tensors["model.norm.weight"] = _norm(rng, case.hidden_size)
    if not case.tied:
        tensors["lm_head.weight"] = _linear(rng, case.vocab_size, case.hidden_size, LOGIT_SPREAD)
    if case.family == "qwen":
        tensors = _as_first(tensors)
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


def _layer(rng: np.random.Generator, case: Case, layer: int) -> dict[str, np.ndarray]:
    prefix = f"model.layers.{layer}."
    hidden, kv = case.hidden_size, case.num_kv_heads * case.head_dim
    queries = case.num_heads * case.head_dim
    # A gain above 1 on q and k makes attention uneven, so that a wrong position shows.
    shapes = {
        "self_attn.q_proj": (queries, hidden, 1.5),
        "self_attn.k_proj": (kv, hidden, 1.5),
        "self_attn.v_proj": (kv, hidden, 1.0),
        "self_attn.o_proj": (hidden, queries, 1.0),
        **_mlp(case, layer),
    }
    out = {f"{prefix}{name}.weight": _linear(rng, *shape) for name, shape in shapes.items()}
    if not case.qk_norm:
        for name, size in (("q", queries), ("k", kv), ("v", kv)):
            out[f"{prefix}self_attn.{name}_proj.bias"] = _normal(rng, (size,), 0.3)
    for name in ("input_layernorm", "post_attention_layernorm"):
        out[f"{prefix}{name}.weight"] = _norm(rng, case.hidden_size)
    if case.qk_norm:
        for name in ("q_norm", "k_norm"):
            out[f"{prefix}self_attn.{name}.weight"] = _norm(rng, case.head_dim) * np.float32(1.5)
    return out


def _mlp(case: Case, layer: int) -> dict[str, tuple[int, int, float]]:
    """Name -> rows, columns and gain of the linears of the MLP or the experts."""
    hidden = case.hidden_size

    def gated(prefix: str, inner: int) -> dict[str, tuple[int, int, float]]:
        return {
            f"{prefix}gate_proj": (inner, hidden, 1.0),
            f"{prefix}up_proj": (inner, hidden, 1.0),
            f"{prefix}down_proj": (hidden, inner, 1.5),
        }

    if not case.is_sparse(layer):
        return gated("mlp.", case.intermediate_size)
    shapes = {"mlp.gate": (case.more["num_experts"], hidden, 2.0)}
    for expert in range(case.more["num_experts"]):
        shapes |= gated(f"mlp.experts.{expert}.", case.more["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in case.more:
        shapes |= gated("mlp.shared_expert.", case.more["shared_expert_intermediate_size"])
        shapes["mlp.shared_expert_gate"] = (1, hidden, 1.0)
    return shapes


FIRST_NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.norm": "transformer.ln_f",
    "model.layers": "transformer.h",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.gate_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w1",
    "mlp.down_proj": "mlp.c_proj",
    "self_attn": "attn",
}


def _as_first(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In the first Qwen's names, with q, k and v in one tensor."""
    out: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        new = name
        for theirs, first in FIRST_NAMES.items():
            new = new.replace(theirs, first)
        whole = new.replace("k_proj", "q_proj").replace("v_proj", "q_proj")
        whole = whole.replace("q_proj", "c_attn")
        out[whole] = np.concatenate([out[whole], tensor]) if whole in out else tensor
    return out


def _embedding(rng: np.random.Generator, case: Case) -> np.ndarray:
    # Small as in real models: next to mean squares of 4e-4 a wrong rms epsilon shows.
    spread = LOGIT_SPREAD / case.hidden_size**0.5 if case.tied else 0.02
    return _normal(rng, (case.vocab_size, case.hidden_size), spread)


def _norm(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.float32(1) + _normal(rng, (size,), 0.1)


def _linear(rng: np.random.Generator, rows: int, columns: int, gain: float) -> np.ndarray:
    return _normal(rng, (rows, columns), gain / columns**0.5)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> np.ndarray:
    return (rng.standard_normal(shape) * spread).astype(np.float32)
