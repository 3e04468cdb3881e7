"""Qwen1.5-MoE and Qwen2-MoE: experts beside one that every token goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from qinfer.core.config import decoder_config, with_experts
from qinfer.core.decoder_weights import Naming, decoder_rules
from qinfer.core.specs import hookimpl
from qinfer.core.types import ModelConfig, PluginInfo, WeightRule
from qinfer.plugins.models.qwen2 import Qwen2

DEFAULTS: Mapping[str, Any] = {
    # transformers' Qwen2MoeConfig
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "qkv_bias": True,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "decoder_sparse_step": 1,
}
FIXED: Mapping[str, Any] = {
    "attention_bias": False,
    # Implementations disagree on which layers it means; no published model has one.
    "use_sliding_window": False,
}


class Qwen2Moe(Qwen2):
    """Qwen2's attention; the MLP is a shared expert behind a sigmoid and the top k of many."""

    info = PluginInfo(
        name="qwen2_moe",
        kind="model",
        api="1.1",
        summary="Qwen1.5-MoE and Qwen2-MoE",
        model_types=("qwen2_moe",),
        architectures=("Qwen2MoeForCausalLM",),
    )

    @hookimpl
    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """Translate config.json; raises BadCheckpoint listing every bad key."""
        experts = partial(with_experts, shared=True)
        return decoder_config(raw, defaults=DEFAULTS, fixed=FIXED, extend=experts)

    @hookimpl
    def weight_rules(self, config: ModelConfig) -> Sequence[WeightRule]:
        """Hugging Face names first, PaddleNLP's as alternatives."""
        return decoder_rules(config, Naming(), Naming(prefix="qwen2_moe."))
