"""Qwen2 and everything shaped like it: Qwen1.5, Qwen2 and Qwen2.5 dense checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from qinfer.core.chat import chatml
from qinfer.core.config import decoder_config
from qinfer.core.protocols import ModelParts
from qinfer.core.rotary import rotary_table
from qinfer.core.specs import ModelPlugin, hookimpl
from qinfer.core.types import (
    Array,
    LinearSpec,
    ModelConfig,
    PluginInfo,
    StepInput,
    WeightRule,
)
from qinfer.cuda_ops import ops

PADDLE_PREFIX = "qwen2."


class Qwen2(ModelPlugin):
    """Decoder with RMS norm, grouped-query attention with QKV biases, and a SiLU-gated MLP."""

    info = PluginInfo(
        name="qwen2",
        kind="model",
        api="1.0",
        summary="Qwen1.5, Qwen2 and Qwen2.5 dense models",
        model_types=("qwen2",),
        architectures=("Qwen2ForCausalLM",),
    )
    system_prompt = "You are a helpful assistant."
    """Used when a checkpoint has no chat template and the conversation no system message."""
    defaults: ClassVar[dict[str, Any]] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    """What transformers' Qwen2Config assumes for a key that config.json leaves out."""

    @hookimpl
    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """Translate config.json; raises BadCheckpoint listing every bad key."""
        return decoder_config(raw, defaults=self.defaults)

    @hookimpl
    def linear_layers(self, config: ModelConfig) -> Sequence[LinearSpec]:
        """Four linears a layer, with q, k, v and gate, up fused; then the vocabulary head."""
        layers = [spec for layer in range(config.num_layers) for spec in _layer(config, layer)]
        return [*layers, _head(config)]

    @hookimpl
    def weight_rules(self, config: ModelConfig) -> Sequence[WeightRule]:
        """Hugging Face names first, PaddleNLP's as alternatives."""
        rules = [rule for prefix in ("model.", PADDLE_PREFIX) for rule in _rules(config, prefix)]
        return [*rules, WeightRule(target="", source=("*.rotary_emb.inv_freq",), op="skip")]

    @hookimpl
    def build_model(self, config: ModelConfig, parts: ModelParts) -> Qwen2Decoder:
        """The decoder, asking for its weights in the order they are used."""
        return Qwen2Decoder(config, parts)

    @hookimpl
    def chat_prompt(self, config: ModelConfig, messages: Sequence[Mapping[str, str]]) -> str:
        """ChatML with this variant's system prompt."""
        return chatml(messages, default_system=self.system_prompt)


class Qwen2Decoder:
    """The forward pass over a ragged batch."""

    def __init__(self, config: ModelConfig, parts: ModelParts) -> None:
        self.eps = config.rms_norm_eps
        self.scale = config.head_dim**-0.5
        self.dtype = config.compute_dtype
        self.embedding = parts.parameter("embed.weight", dtype=config.dtype)
        self.layers = []
        for layer in range(config.num_layers):
            attention_norm = parts.parameter(f"layers.{layer}.attention_norm.weight")
            qkv, output, gate_up, down = (parts.linear(spec) for spec in _layer(config, layer))
            mlp_norm = parts.parameter(f"layers.{layer}.mlp_norm.weight")
            self.layers.append((attention_norm, qkv, output, mlp_norm, gate_up, down))
        self.final_norm = parts.parameter("norm.weight")
        self.head = parts.linear(_head(config))
        positions, dim = config.max_position_embeddings, config.head_dim
        self.rotary = parts.constant(rotary_table(positions, dim, config.rope_theta))

    def __call__(self, batch: StepInput, cache: Sequence[tuple[Array, Array]]) -> Array:
        """Write the new keys and values in place and return logits [R, vocab_size] float32."""
        residual = ops.embed(batch.token_ids, self.embedding, self.dtype)
        delta = None
        for (attention_norm, qkv, output, mlp_norm, gate_up, down), (keys, values) in zip(
            self.layers, cache, strict=True
        ):
            if delta is None:
                x = ops.rms_norm(residual, attention_norm, self.eps)
            else:
                x, residual = ops.add_rms_norm(delta, residual, attention_norm, self.eps)
            queries = ops.rotary_kv_write(
                qkv(x), self.rotary, batch.positions, keys, values, batch.slot_mapping
            )
            mixed = ops.paged_attention(
                queries,
                keys,
                values,
                batch.query_starts,
                batch.seq_lens,
                batch.block_tables,
                self.scale,
            )
            x, residual = ops.add_rms_norm(output(mixed), residual, mlp_norm, self.eps)
            delta = down(ops.silu_gate(gate_up(x)))
        rows, residual = (ops.take_rows(part, batch.logit_rows) for part in (delta, residual))
        x, _ = ops.add_rms_norm(rows, residual, self.final_norm, self.eps)
        return ops.to_float32(self.head(x))


def _layer(config: ModelConfig, layer: int) -> list[LinearSpec]:
    """The linears of one layer, in the order the decoder uses them."""
    hidden, inter = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim

    def spec(role: str, width: int, parts: tuple[int, ...], bias: bool = False) -> LinearSpec:
        return LinearSpec(
            name=f"layers.{layer}.{role}",
            role=role,
            in_features=width,
            out_features=sum(parts),
            bias=bias,
            layer=layer,
            parts=parts,
        )

    return [
        spec("qkv", hidden, (queries, keys, keys), bias=True),
        spec("o", queries, (hidden,)),
        spec("gate_up", hidden, (inter, inter)),
        spec("down", inter, (hidden,)),
    ]


def _head(config: ModelConfig) -> LinearSpec:
    return LinearSpec(
        name="lm_head",
        role="lm_head",
        in_features=config.hidden_size,
        out_features=config.vocab_size,
        parts=(config.vocab_size,),
    )


_PROJECTIONS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def _rules(config: ModelConfig, prefix: str) -> list[WeightRule]:
    """The rules for checkpoints whose names begin with ``prefix``."""
    hidden, vocabulary = (config.hidden_size,), (config.vocab_size, config.hidden_size)
    embedding, head = f"{prefix}embed_tokens.weight", "lm_head.weight"
    rules = [
        WeightRule(target="embed.weight", source=(embedding,), shape=vocabulary),
        WeightRule(target="norm.weight", source=(f"{prefix}norm.weight",), shape=hidden),
    ]
    if config.tie_word_embeddings:
        rules += [
            WeightRule(target="lm_head.weight", source=(embedding,), shape=vocabulary),
            WeightRule(target="", source=(head,), op="skip"),
        ]
    else:
        rules.append(
            WeightRule(target="lm_head.weight", source=(head,), shape=vocabulary, linear=True)
        )
    for layer in range(config.num_layers):
        base = f"{prefix}layers.{layer}."
        for ours, theirs in (("attention", "input"), ("mlp", "post_attention")):
            target = f"layers.{layer}.{ours}_norm.weight"
            source = (f"{base}{theirs}_layernorm.weight",)
            rules.append(WeightRule(target=target, source=source, shape=hidden))
        for spec in _layer(config, layer):
            rules += _linear_rules(spec, base)
    return rules


def _linear_rules(spec: LinearSpec, base: str) -> list[WeightRule]:
    def rule(suffix: str, shape: tuple[int, ...]) -> WeightRule:
        return WeightRule(
            target=f"{spec.name}.{suffix}",
            source=tuple(f"{base}{name}.{suffix}" for name in _PROJECTIONS[spec.role]),
            op="fuse" if len(spec.parts) > 1 else "copy",
            shape=shape,
            sizes=spec.parts,
            linear=suffix == "weight",
        )

    rules = [rule("weight", (spec.out_features, spec.in_features))]
    return [*rules, rule("bias", (spec.out_features,))] if spec.bias else rules
