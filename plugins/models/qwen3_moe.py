"""Qwen3-MoE checkpoints: Qwen3's attention, and experts without a shared one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qinfer.core.config import decoder_config, with_experts
from qinfer.core.specs import hookimpl
from qinfer.core.types import ModelConfig, PluginInfo
from qinfer.plugins.models.qwen3 import Qwen3

DEFAULTS: Mapping[str, Any] = {
    # transformers' Qwen3MoeConfig
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
}
FIXED: Mapping[str, Any] = {
    # Implementations disagree on which layers it means; no published model has one.
    "use_sliding_window": False,
}


class Qwen3Moe(Qwen3):
    """Norms on each query and key head; the MLP is the top k of many experts."""

    info = PluginInfo(
        name="qwen3_moe",
        kind="model",
        api="1.1",
        summary="Qwen3-MoE",
        model_types=("qwen3_moe",),
        architectures=("Qwen3MoeForCausalLM",),
    )

    @hookimpl
    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """Translate config.json; raises BadCheckpoint listing every bad key."""
        config = decoder_config(raw, defaults=DEFAULTS, fixed=FIXED, extend=with_experts)
        return replace(config, qk_norm=True)
