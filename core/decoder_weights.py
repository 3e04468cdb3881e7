"""The linears and weight rules of a Qwen-like decoder, for whatever its config says it has.

Our names: ``embed``, ``layers.N.{attention_norm, qkv, q_norm, k_norm, o, mlp_norm}``, then either
``gate_up`` and ``down``, or ``router``, ``experts.{gate_up, down}`` and, where there is a shared
expert, ``shared.{gate_up, down}`` and ``shared_gate``; ``norm``, ``lm_head``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qinfer.core.types import LinearSpec, ModelConfig, WeightRule

HUGGING_FACE: Mapping[str, tuple[str, ...]] = {
    "attention_norm": ("input_layernorm",),
    "mlp_norm": ("post_attention_layernorm",),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "router": ("mlp.gate",),
    "experts.gate_up": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
    "experts.down": ("mlp.experts.{}.down_proj",),
    "shared.gate_up": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    "shared.down": ("mlp.shared_expert.down_proj",),
    "shared_gate": ("mlp.shared_expert_gate",),
}


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What checkpoints call the parameters: names below ``prefix``, without ``.weight``.

    ``projections``: part of a layer -> the tensors it is made of, {} standing for an expert's
    number.
    """

    prefix: str = "model."
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    projections: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: HUGGING_FACE)


def layer_linears(config: ModelConfig, layer: int) -> dict[str, LinearSpec]:
    """The linears of one layer in the order the decoder uses them, by their names in the layer."""
    return {spec.name.split(".", 2)[2]: spec for spec in _layer(config, layer)}


def head_linear(config: ModelConfig) -> LinearSpec:
    """The vocabulary head."""
    return LinearSpec(
        name="lm_head",
        role="lm_head",
        in_features=config.hidden_size,
        out_features=config.vocab_size,
        parts=(config.vocab_size,),
    )


def decoder_linears(config: ModelConfig) -> list[LinearSpec]:
    """All linears, layer by layer, then the head."""
    layers = [spec for layer in range(config.num_layers) for spec in _layer(config, layer)]
    return [*layers, head_linear(config)]


def decoder_rules(config: ModelConfig, *namings: Naming) -> list[WeightRule]:
    """The rules for checkpoints in any of these namings."""
    rules = [rule for naming in namings for rule in _rules(config, naming)]
    return [*rules, WeightRule(target="", source=("*.rotary_emb.inv_freq",), op="skip")]


def _layer(config: ModelConfig, layer: int) -> Iterator[LinearSpec]:
    hidden, queries = config.hidden_size, config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim

    base = f"layers.{layer}"

    def spec(name: str, width: int, *parts: int, **more: Any) -> LinearSpec:
        return LinearSpec(
            name=f"{base}.{name}",
            role=name.rpartition(".")[2],
            in_features=width,
            out_features=sum(parts),
            layer=layer,
            parts=parts,
            **more,
        )

    norm = f"{base}.attention_norm.weight"
    yield spec("qkv", hidden, queries, keys, keys, bias=config.qkv_bias, norm=norm)
    yield spec("o", queries, hidden, bias=config.output_bias)
    some = config.experts
    if some is None or layer not in some.layers:
        inter = config.intermediate_size
        yield spec("gate_up", hidden, inter, inter, norm=f"{base}.mlp_norm.weight")
        yield spec("down", inter, hidden, scaled_by=f"{base}.gate_up")
        return
    inter, shared = some.intermediate_size, some.shared_size
    yield spec("router", hidden, some.count)
    yield spec("experts.gate_up", hidden, inter, inter, experts=some.count)
    yield spec("experts.down", inter, hidden, experts=some.count)
    if shared:
        yield spec("shared.gate_up", hidden, shared, shared)
        yield spec("shared.down", shared, hidden, scaled_by=f"{base}.shared.gate_up")
        yield spec("shared_gate", hidden, 1)


def _rules(config: ModelConfig, naming: Naming) -> Iterator[WeightRule]:
    """In the order in which a model asks for them, as they may be read ahead."""
    hidden, vocabulary = (config.hidden_size,), (config.vocab_size, config.hidden_size)
    prefix, head = naming.prefix, "lm_head.weight"
    embedding = (f"{prefix}{naming.embedding}.weight",)
    yield WeightRule(target="embed.weight", source=embedding, shape=vocabulary)
    norms = {"attention_norm": hidden, "mlp_norm": hidden}
    if config.qk_norm:
        norms |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
    for layer in range(config.num_layers):
        base = f"{prefix}{naming.layers}.{layer}."
        for ours, shape in norms.items():
            (theirs,) = naming.projections[ours]
            target, source = f"layers.{layer}.{ours}.weight", (f"{base}{theirs}.weight",)
            yield WeightRule(target=target, source=source, shape=shape)
        for name, spec in layer_linears(config, layer).items():
            yield from _linear_rules(spec, [base + part for part in naming.projections[name]])
    yield WeightRule(target="norm.weight", source=(f"{prefix}{naming.norm}.weight",), shape=hidden)
    if config.tie_word_embeddings:
        yield WeightRule(target=head, source=embedding, shape=vocabulary)
        yield WeightRule(target="", source=(head,), op="skip")
    else:
        yield WeightRule(target=head, source=(head,), shape=vocabulary, linear=True)


def _linear_rules(spec: LinearSpec, names: list[str]) -> Iterator[WeightRule]:
    """A weight of several tensors is their rows one below the other, expert by expert."""
    tensors = [name.format(expert) for expert in range(spec.experts or 1) for name in names]
    whole = len(names) == 1  # all parts in one tensor
    sizes = ((spec.out_features,) if whole else spec.parts) * max(spec.experts, 1)
    for suffix in ("weight", "bias") if spec.bias else ("weight",):
        yield WeightRule(
            target=f"{spec.name}.{suffix}",
            source=tuple(f"{tensor}.{suffix}" for tensor in tensors),
            op="fuse" if len(tensors) > 1 else "copy",
            shape=(spec.rows, spec.in_features)[: 2 if suffix == "weight" else 1],
            sizes=sizes,
            linear=suffix == "weight",
        )
