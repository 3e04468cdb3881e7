"""Tiny models of every family, generated and never stored, with numpy only.

The goldens (``make_goldens.py``) and the tests build the same float32 weights from a seed::

    from goldens import tiny
    case = tiny.CASES["gqa"]
    folder = tiny.write_checkpoint(tmp_path / "model", case, dtype="bfloat16", shards=3)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from goldens.case import Case
from goldens.weights import round_bfloat16, weights
from goldens.writer import write_checkpoint

__all__ = ["CASES", "Case", "prompt", "round_bfloat16", "weights", "write_checkpoint"]

DATA = Path(__file__).parent / "data"
"""Where the golden answers are."""

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


def prompt(case: Case) -> list[int]:
    """``prompt_length`` token ids, the same every time."""
    rng = np.random.Generator(np.random.PCG64(case.seed + 1000))
    return [int(token) for token in rng.integers(0, case.vocab_size, case.prompt_length)]
