"""A tiny model: its shape, and the config.json that says so."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = {
    "qwen": "QWenLMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


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
