"""The weights of a tiny model, from its seed, with numpy only."""

from __future__ import annotations

import numpy as np

from goldens.case import Case

LOGIT_SPREAD = 3.0
"""Standard deviation of the logits, roughly: wide enough that greedy choices are not near ties."""


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
