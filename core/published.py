"""The published sizes of each family: their config.json, and how many parameters they have.

Hyperparameters and totals are those of the models' own pages on the Hugging Face hub (config.json,
and the total the hub counts from the safetensors headers; for models whose head is tied, without a
second copy of the embedding). They were written down from memory of those pages and are held
against each other: a total is the sum of tensors of exactly these shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from qinfer.core.errors import UsageError


@dataclass(frozen=True)
class Published:
    """``config``: its config.json. ``total``: parameters."""

    name: str
    config: dict[str, Any]
    total: int


A, B = 151936, 152064


def _qwen(
    layers: int, hidden: int, heads: int, inter: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 2 * inter,
        "vocab_size": vocab,
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "no_bias": True,
        "seq_length": 8192,
        "max_position_embeddings": 32768,
        **more,
    }


def _dense(
    layers: int, hidden: int, heads: int, kv: int, inter: int, vocab: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inter,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        **more,
    }


def _third(*sizes: Any, **more: Any) -> dict[str, Any]:
    third = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
    return _dense(*sizes, **{**third, "max_position_embeddings": 40960, **more})


def _experts(count: int, top_k: int, width: int, shared: int, normalise: bool) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "num_experts": count,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "norm_topk_prob": normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    if shared:
        family = {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"]}
        return keys | family | {"shared_expert_intermediate_size": shared}
    return keys | {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}


LONG = {"max_position_embeddings": 131072}

MODELS = [
    Published("Qwen-1.8B", _qwen(24, 2048, 16, 5504, A, max_position_embeddings=8192), 1836828672),
    Published("Qwen-7B", _qwen(32, 4096, 32, 11008, A), 7721324544),
    Published(
        "Qwen-14B",
        _qwen(40, 5120, 40, 13696, B, seq_length=2048, max_position_embeddings=8192),
        14167290880,
    ),
    Published(
        "Qwen-72B",
        _qwen(
            *(80, 8192, 64, 24576, B),
            rotary_emb_base=1000000,
            seq_length=32768,
            use_dynamic_ntk=False,
            use_logn_attn=False,
        ),
        72287920128,
    ),
    Published("Qwen1.5-0.5B", _dense(24, 1024, 16, 16, 2816, A, True), 463987712),
    Published("Qwen1.5-1.8B", _dense(24, 2048, 16, 16, 5504, A, False), 1836828672),
    Published("Qwen1.5-4B", _dense(40, 2560, 20, 20, 6912, A, False, rope_theta=5e6), 3950369280),
    Published("Qwen1.5-7B", _dense(32, 4096, 32, 32, 11008, A, False), 7721324544),
    Published("Qwen1.5-14B", _dense(40, 5120, 40, 40, 13696, B, False), 14167290880),
    Published("Qwen1.5-32B", _dense(64, 5120, 40, 8, 27392, B, False), 32512218112),
    Published("Qwen1.5-72B", _dense(80, 8192, 64, 64, 24576, B, False), 72287920128),
    Published("Qwen1.5-110B", _dense(80, 8192, 64, 8, 49152, B, False), 111209914368),
    Published(
        "Qwen1.5-MoE-A2.7B",
        _dense(24, 2048, 16, 16, 5632, A, False, **_experts(60, 4, 1408, 5632, False)),
        14315784192,
    ),
    Published("Qwen2-0.5B", _dense(24, 896, 14, 2, 4864, A, True, **LONG), 494032768),
    Published("Qwen2-1.5B", _dense(28, 1536, 12, 2, 8960, A, True, **LONG), 1543714304),
    Published("Qwen2-7B", _dense(28, 3584, 28, 4, 18944, B, False, **LONG), 7615616512),
    Published(
        "Qwen2-57B-A14B",
        _dense(28, 3584, 28, 4, 18944, A, False, **LONG, **_experts(64, 8, 2560, 20480, False)),
        57408658944,
    ),
    Published("Qwen2-72B", _dense(80, 8192, 64, 8, 29568, B, False, **LONG), 72706203648),
    Published("Qwen2.5-0.5B", _dense(24, 896, 14, 2, 4864, A, True), 494032768),
    Published("Qwen2.5-1.5B", _dense(28, 1536, 12, 2, 8960, A, True, **LONG), 1543714304),
    Published("Qwen2.5-3B", _dense(36, 2048, 16, 2, 11008, A, True), 3085938688),
    Published("Qwen2.5-7B", _dense(28, 3584, 28, 4, 18944, B, False, **LONG), 7615616512),
    Published("Qwen2.5-14B", _dense(48, 5120, 40, 8, 13824, B, False, **LONG), 14770033664),
    Published(
        "Qwen2.5-32B, QwQ-32B", _dense(64, 5120, 40, 8, 27648, B, False, **LONG), 32763876352
    ),
    Published("Qwen2.5-72B", _dense(80, 8192, 64, 8, 29568, B, False, **LONG), 72706203648),
    Published("Qwen3-0.6B", _third(28, 1024, 16, 8, 3072, A, True), 596049920),
    Published("Qwen3-1.7B", _third(28, 2048, 16, 8, 6144, A, True), 1720574976),
    Published("Qwen3-4B", _third(36, 2560, 32, 8, 9728, A, True), 4022468096),
    Published("Qwen3-8B", _third(36, 4096, 32, 8, 12288, A, False), 8190735360),
    Published("Qwen3-14B", _third(40, 5120, 40, 8, 17408, A, False), 14768307200),
    Published("Qwen3-32B", _third(64, 5120, 64, 8, 25600, A, False), 32762123264),
    Published(
        "Qwen3-30B-A3B",
        _third(48, 2048, 32, 4, 6144, A, False, **_experts(128, 8, 768, 0, True)),
        30532122624,
    ),
    Published(
        "Qwen3-235B-A22B",
        _third(94, 4096, 64, 4, 12288, A, False, **_experts(128, 8, 1536, 0, True)),
        235093634560,
    ),
]


def find(name: str) -> Published:
    """The model of that name, in capitals or not. Raises UsageError with the nearest names."""
    known = {part.lower(): model for model in MODELS for part in model.name.split(", ")}
    if found := known.get(name.lower()):
        return found
    near = get_close_matches(name.lower(), known, 3, 0.5) or known
    raise UsageError(
        f"no published configuration is called {name!r}",
        remedy=f"Use one of {', '.join(near)}, or the path of a config.json.",
    )
