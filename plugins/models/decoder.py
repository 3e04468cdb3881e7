"""The forward pass of every Qwen-like decoder: what a layer has, its config says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qinfer.core.decoder_weights import head_linear, layer_linears
from qinfer.core.protocols import ModelParts
from qinfer.core.rotary import log_scales, rotary_table
from qinfer.core.types import Array, ExpertConfig, LayerCache, ModelConfig, StepInput
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
        for (attention, mlp), memory in zip(self.layers, cache, strict=True):
            mixed, residual = attention(delta, residual, batch, memory)
            delta, residual = mlp(mixed, residual)
        delta, residual = (ops.take_rows(part, batch.logit_rows) for part in (delta, residual))
        logits, _ = ops.norm_linear(delta, residual, self.final_norm, self.eps, self.head)
        return ops.to_float32(logits)


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


Block = Callable[..., tuple[Array, Array]]
"""(what the block before adds, or None; the sum so far [T, H]) -> the same after this block."""


def _layer(
    config: ModelConfig, parts: ModelParts, layer: int, tables: _PositionTables
) -> tuple[Block, Block]:
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
    attention = Attention(config, attention_norm, linears, tables, norms, window)
    return attention, _mlp(config, mlp_norm, linears)


class Attention:
    """Grouped-query attention over the paged cache."""

    def __init__(
        self,
        config: ModelConfig,
        norm: Array,
        linears: Linears,
        tables: _PositionTables,
        norms: Sequence[Array | None],
        window: int,
    ) -> None:
        self.norm, self.qkv, self.output = norm, linears["qkv"], linears["o"]
        self.rotary, self.query_scale = tables.rotary, tables.query_scale
        self.q_norm, self.k_norm = norms
        self.eps, self.window, self.scale = config.rms_norm_eps, window, config.head_dim**-0.5

    def __call__(
        self, delta: Array | None, residual: Array, batch: StepInput, cache: LayerCache
    ) -> tuple[Array, Array]:
        """A ``Block``, with the step and this layer's memory."""
        qkv, residual = ops.norm_linear(delta, residual, self.norm, self.eps, self.qkv)
        mixed = ops.attend(
            qkv,
            self.rotary,
            batch,
            cache,
            self.scale,
            self.window,
            self.q_norm,
            self.k_norm,
            self.eps,
            self.query_scale,
        )
        return self.output(mixed), residual


def _mlp(config: ModelConfig, norm: Array, linears: Linears) -> Block:
    """The gated MLP, or the experts."""
    eps = config.rms_norm_eps
    if config.experts is not None and "router" in linears:
        mixture = _mixture(config.experts, linears)

        def mixed(delta: Array, residual: Array) -> tuple[Array, Array]:
            x, residual = ops.add_rms_norm(delta, residual, norm, eps)
            return mixture(x), residual

        return mixed

    def gated(delta: Array, residual: Array) -> tuple[Array, Array]:
        return ops.gated_mlp(delta, residual, norm, eps, linears["gate_up"], linears["down"])

    return gated


def _mixture(experts: ExpertConfig, linears: Linears) -> Callable[[Array], Array]:
    """[T, H] -> [T, H]: the chosen experts, and the shared one."""

    def gated(x: Array, name: str, *chosen: Array) -> Array:
        hidden = ops.silu_gate(linears[f"{name}gate_up"](x, *chosen))
        return linears[f"{name}down"](hidden, *chosen)

    def mixture(x: Array) -> Array:
        weights, chosen = ops.route(linears["router"](x), experts.top_k, experts.normalise)
        routed = gated(x, "experts.", chosen)
        if "shared_gate" not in linears:
            return ops.mix_experts(routed, weights, None, None)
        return ops.mix_experts(routed, weights, gated(x, "shared."), linears["shared_gate"](x))

    return mixture
