"""Qwen2 and everything shaped like it: Qwen1.5, Qwen2 and Qwen2.5 dense checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qinfer.core.config import decoder_config
from qinfer.core.decoder_weights import Naming, decoder_linears, decoder_rules
from qinfer.core.protocols import ModelParts
from qinfer.core.specs import ModelPlugin, hookimpl
from qinfer.core.text.chat import chatml
from qinfer.core.types import LinearSpec, ModelConfig, PluginInfo, WeightRule
from qinfer.plugins.models.decoder import Decoder


class Qwen2(ModelPlugin):
    """Grouped-query attention with QKV biases, and a SiLU-gated MLP."""

    info = PluginInfo(
        name="qwen2",
        kind="model",
        api="1.1",
        summary="Qwen1.5, Qwen2 and Qwen2.5 dense models",
        model_types=("qwen2",),
        architectures=("Qwen2ForCausalLM",),
    )
    system_prompt = "You are a helpful assistant."
    """Used when a checkpoint has no chat template and the conversation no system message."""
    defaults: ClassVar[dict[str, Any]] = {
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    """What transformers' Qwen2Config assumes for a key that config.json leaves out."""

    @hookimpl
    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """Translate config.json; raises BadCheckpoint listing every bad key."""
        fixed = {"qkv_bias": True, "attention_bias": False}
        return decoder_config(raw, defaults=self.defaults, fixed=fixed)

    @hookimpl
    def linear_layers(self, config: ModelConfig) -> Sequence[LinearSpec]:
        """Four linears a layer, with q, k, v and gate, up fused; then the vocabulary head."""
        return decoder_linears(config)

    @hookimpl
    def weight_rules(self, config: ModelConfig) -> Sequence[WeightRule]:
        """Hugging Face names first, PaddleNLP's as alternatives."""
        return decoder_rules(config, Naming(), Naming(prefix="qwen2."))

    @hookimpl
    def build_model(self, config: ModelConfig, parts: ModelParts) -> Decoder:
        """The decoder, asking for its weights in the order they are used."""
        return Decoder(config, parts)

    @hookimpl
    def chat_prompt(self, config: ModelConfig, messages: Sequence[Mapping[str, str]]) -> str:
        """ChatML with this variant's system prompt."""
        return chatml(messages, default_system=self.system_prompt)
