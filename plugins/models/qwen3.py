"""Qwen3 dense checkpoints: heads of their own width, and a norm on each query and key head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qinfer.core.config import decoder_config
from qinfer.core.decoder_weights import Naming, decoder_linears, decoder_rules
from qinfer.core.protocols import ModelParts
from qinfer.core.specs import ModelPlugin, hookimpl
from qinfer.core.text.chat import chatml
from qinfer.core.types import LinearSpec, ModelConfig, PluginInfo, WeightRule
from qinfer.plugins.models.decoder import Decoder

DEFAULTS: Mapping[str, Any] = {
    # transformers' Qwen3Config
    "head_dim": 128,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


class Qwen3(ModelPlugin):
    """Qwen2 without biases and with RMS norms over each head of queries and keys."""

    info = PluginInfo(
        name="qwen3",
        kind="model",
        api="1.1",
        summary="Qwen3 dense models",
        model_types=("qwen3",),
        architectures=("Qwen3ForCausalLM",),
    )

    @hookimpl
    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """Translate config.json; raises BadCheckpoint listing every bad key."""
        return replace(decoder_config(raw, defaults=DEFAULTS), qk_norm=True)

    @hookimpl
    def linear_layers(self, config: ModelConfig) -> Sequence[LinearSpec]:
        """Four linears a layer, with q, k, v and gate, up fused; then the vocabulary head."""
        return decoder_linears(config)

    @hookimpl
    def weight_rules(self, config: ModelConfig) -> Sequence[WeightRule]:
        """Hugging Face names, which PaddleNLP uses too."""
        return decoder_rules(config, Naming())

    @hookimpl
    def build_model(self, config: ModelConfig, parts: ModelParts) -> Decoder:
        """The decoder, asking for its weights in the order they are used."""
        return Decoder(config, parts)

    @hookimpl
    def chat_prompt(self, config: ModelConfig, messages: Sequence[Mapping[str, str]]) -> str:
        """ChatML; Qwen3 has no system prompt of its own."""
        return chatml(messages)
