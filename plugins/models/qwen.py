"""The first Qwen: fused projections, dynamic NTK and log-n attention (modeling_qwen.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qinfer.core.config import ConfigChecker, decoder_config
from qinfer.core.decoder_weights import Naming, decoder_linears, decoder_rules
from qinfer.core.protocols import ModelParts
from qinfer.core.specs import ModelPlugin, hookimpl
from qinfer.core.text.chat import chatml
from qinfer.core.types import LinearSpec, ModelConfig, PluginInfo, RotaryScaling, WeightRule
from qinfer.plugins.models.decoder import Decoder

DEFAULTS: Mapping[str, Any] = {
    # configuration_qwen.py
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "seq_length": 8192,
}
NAMES: Mapping[str, str] = {
    "head_dim": "kv_channels",
    "rms_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
}
PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "attention_norm": ("ln_1",),
    "mlp_norm": ("ln_2",),
    "qkv": ("attn.c_attn",),
    "o": ("attn.c_proj",),
    "gate_up": ("mlp.w2", "mlp.w1"),
    "down": ("mlp.c_proj",),
}
ENDS = (151643, 151645)
"""<|endoftext|> and <|im_end|> in the one vocabulary the family has; its config.json names none."""


class Qwen(ModelPlugin):
    """Multi-head attention with QKV biases; long prompts change the rotary base."""

    info = PluginInfo(
        name="qwen",
        kind="model",
        api="1.1",
        summary="Qwen, the first generation",
        model_types=("qwen",),
        architectures=("QWenLMHeadModel", "QWenForCausalLM"),
    )

    @hookimpl
    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """Translate config.json; raises BadCheckpoint listing every bad key."""
        fixed = {"no_bias": True, "qkv_bias": True, "tie_word_embeddings": False}
        return decoder_config(raw, defaults=DEFAULTS, fixed=fixed, names=NAMES, extend=_extend)

    @hookimpl
    def linear_layers(self, config: ModelConfig) -> Sequence[LinearSpec]:
        """Four linears a layer, with q, k, v and gate, up fused; then the vocabulary head."""
        return decoder_linears(config)

    @hookimpl
    def weight_rules(self, config: ModelConfig) -> Sequence[WeightRule]:
        """Hugging Face names first, PaddleNLP's as alternatives."""
        names = [
            Naming(prefix=prefix, embedding="wte", layers="h", norm="ln_f", projections=PROJECTIONS)
            for prefix in ("transformer.", "qwen.")
        ]
        return decoder_rules(config, *names)

    @hookimpl
    def build_model(self, config: ModelConfig, parts: ModelParts) -> Decoder:
        """The decoder, asking for its weights in the order they are used."""
        return Decoder(config, parts)

    @hookimpl
    def chat_prompt(self, config: ModelConfig, messages: Sequence[Mapping[str, str]]) -> str:
        """ChatML with Qwen's system prompt."""
        return chatml(messages, default_system="You are a helpful assistant.")


def _extend(check: ConfigChecker, config: ModelConfig) -> ModelConfig:
    """What is the family's own: intermediate_size counts gate and up; long prompts."""
    trained = check.integer("seq_length")
    if config.intermediate_size % 2:
        check.add(f"intermediate_size: must be even, found {config.intermediate_size}")
    scaling = RotaryScaling(kind="dynamic", factor=2.0, original=trained)
    return replace(
        config,
        intermediate_size=config.intermediate_size // 2,
        rotary_scaling=scaling if check.flag("use_dynamic_ntk", True) else config.rotary_scaling,
        log_length=trained if check.flag("use_logn_attn", True) else 0,
        eos_token_ids=config.eos_token_ids
        or tuple(token for token in ENDS if token < config.vocab_size),
    )
