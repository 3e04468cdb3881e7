"""The forward pass of every Qwen-like decoder: what a layer has, its config says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qinfer.core.decoder_weights import head_linear, layer_linears
from qinfer.core.protocols import ModelParts
from qinfer.core.rotary import log_scales, rotary_table
from qinfer.core.types import Array, LayerCache, ModelConfig, StepInput
from qinfer.cuda_ops import ops

Linears = Mapping[str, Any]
"""A layer's linears by name; those of experts are called with the experts too."""


class Decoder:
    """RMS norm, attention, RMS norm, MLP or experts in each layer, over a ragged batch."""

    def __init__(self, config: ModelConfig, parts: ModelParts) -> None:
        """Ask for the weights in the order they are used."""
        self.eps, self.dtype = config.rms_norm_eps, config.compute_dtype
        self.embedding = parts.parameter("embed.weight", dtype=config.dtype)
        tables = _PositionTables(config, parts)
        self.layers = [_layer(config, parts, layer, tables) for layer in range(config.num_layers)]
        self.final_norm = parts.parameter("norm.weight")
        self.head = parts.linear(head_linear(config))

    def __call__(self, batch: StepInput, cache: Sequence[LayerCache]) -> Array:
        """Write the new keys and values in place and return logits [R, vocab_size] float32."""
        residual = ops.embed(batch.token_ids, self.embedding, self.dtype)
        delta = None
        for (attention_norm, attention, mlp_norm, mlp), memory in zip(
            self.layers, cache, strict=True
        ):
            if delta is None:
                x = ops.rms_norm(residual, attention_norm, self.eps)
            else:
                x, residual = ops.add_rms_norm(delta, residual, attention_norm, self.eps)
            mixed = attention(x, batch, memory)
            x, residual = ops.add_rms_norm(mixed, residual, mlp_norm, self.eps)
            delta = mlp(x)
        rows, residual = (ops.take_rows(part, batch.logit_rows) for part in (delta, residual))
        x, _ = ops.add_rms_norm(rows, residual, self.final_norm, self.eps)
        return ops.to_float32(self.head(x))


class _PositionTables:
    """What is looked up by position, shared by all layers."""

    def __init__(self, config: ModelConfig, parts: ModelParts) -> None:
        self.rotary = parts.constant(
            rotary_table(
                config.max_position_embeddings,
                config.head_dim,
                config.rope_theta,
                config.rotary_scaling,
            ),
            "float32",
        )
        scales = log_scales(config)
        self.query_scale = None if scales is None else parts.constant(scales)


def _layer(
    config: ModelConfig, parts: ModelParts, layer: int, tables: _PositionTables
) -> tuple[Array, Callable[..., Array], Array, Callable[[Array], Array]]:
    attention_norm = parts.parameter(f"layers.{layer}.attention_norm.weight")
    linears = {
        name: parts.experts(spec) if spec.experts else parts.linear(spec)
        for name, spec in layer_linears(config, layer).items()
    }
    norms = (
        [parts.parameter(f"layers.{layer}.{name}.weight") for name in ("q_norm", "k_norm")]
        if config.qk_norm
        else [None, None]
    )
    mlp_norm = parts.parameter(f"layers.{layer}.mlp_norm.weight")
    window = config.windows[layer] if config.windows else 0
    attention = Attention(config, linears, tables, norms, window)
    return attention_norm, attention, mlp_norm, _mlp(config, linears)


class Attention:
    """Grouped-query attention over the paged cache."""

    def __init__(
        self,
        config: ModelConfig,
        linears: Linears,
        tables: _PositionTables,
        norms: Sequence[Array | None],
        window: int,
    ) -> None:
        self.qkv, self.output = linears["qkv"], linears["o"]
        self.rotary, self.query_scale = tables.rotary, tables.query_scale
        self.q_norm, self.k_norm = norms
        self.eps, self.window, self.scale = config.rms_norm_eps, window, config.head_dim**-0.5

    def __call__(self, x: Array, batch: StepInput, cache: LayerCache) -> Array:
        """[T, H] -> [T, H]."""
        queries = ops.rotary_kv_write(
            self.qkv(x),
            self.rotary,
            batch.positions,
            cache,
            batch.slot_mapping,
            self.q_norm,
            self.k_norm,
            self.eps,
            self.query_scale,
        )
        mixed = ops.paged_attention(
            queries,
            cache,
            batch.query_starts,
            batch.seq_lens,
            batch.block_tables,
            self.scale,
            self.window,
        )
        return self.output(mixed)


def _mlp(config: ModelConfig, linears: Linears) -> Callable[[Array], Array]:
    """[T, H] -> [T, H]: the gated MLP, or the experts."""

    def gated(x: Array, name: str, *experts: Array) -> Array:
        hidden = ops.silu_gate(linears[f"{name}gate_up"](x, *experts))
        return linears[f"{name}down"](hidden, *experts)

    if config.experts is None or "router" not in linears:
        return lambda x: gated(x, "")
    top_k, normalise = config.experts.top_k, config.experts.normalise

    def mixture(x: Array) -> Array:
        weights, experts = ops.route(linears["router"](x), top_k, normalise)
        routed = gated(x, "experts.", experts)
        if "shared_gate" not in linears:
            return ops.mix_experts(routed, weights, None, None)
        return ops.mix_experts(routed, weights, gated(x, "shared."), linears["shared_gate"](x))

    return mixture
