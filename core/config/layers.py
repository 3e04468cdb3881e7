"""What config.json says of single layers: sliding windows, and which have experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qinfer.core.config.check import ConfigChecker, show
from qinfer.core.types import ExpertConfig, ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def read_windows(check: ConfigChecker, layers: int) -> tuple[int, ...]:
    """The window of each layer, 0 for a layer that sees everything; empty if all do.

    ``layer_types`` says which layers have it; without that, those from ``max_window_layers`` on.
    """
    kinds = check.get("layer_types")
    listed = isinstance(kinds, list) and len(kinds) == layers
    if kinds is not None and not listed:
        check.add(f"layer_types: must list {layers} layers, found {show(kinds)}")
        return ()
    other = next((kind for kind in kinds or () if kind not in (FULL, SLIDING)), None)
    if other is not None:
        check.add(f"layer_types: must be {FULL} or {SLIDING}, found {show(other)}")
    if not check.flag("use_sliding_window", False):
        if SLIDING in (kinds or ()):
            check.add(f"layer_types: {SLIDING} contradicts use_sliding_window, which is not true")
        return ()
    window, first = check.integer("sliding_window"), check.get("max_window_layers")
    if kinds is not None:
        return tuple(window * (kind == SLIDING) for kind in kinds)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        check.add(f"max_window_layers: must be a whole number, found {show(first)}")
        return ()
    return tuple(window * (layer >= first) for layer in range(layers))


def with_experts(check: ConfigChecker, config: ModelConfig, *, shared: bool = False) -> ModelConfig:
    """``config`` with the mixture of experts described by the keys of Qwen2-MoE and Qwen3-MoE.

    Layer i has experts unless ``mlp_only_layers`` lists it, if i + 1 is a multiple of
    ``decoder_sparse_step``. ``shared``: there is a shared expert too.
    """
    # transformers 5 writes Qwen3-MoE's num_experts as num_local_experts.
    key = "num_experts" if check.written("num_local_experts") is None else "num_local_experts"
    count = check.integer(key)
    top_k, step = check.integer("num_experts_per_tok"), check.integer("decoder_sparse_step")
    if top_k > count:
        check.add(f"num_experts_per_tok: {top_k} is more than the {count} experts there are")
    experts = ExpertConfig(
        count=count,
        top_k=top_k,
        intermediate_size=check.integer("moe_intermediate_size"),
        normalise=check.flag("norm_topk_prob", False),
        layers=_sparse_layers(check, config.num_layers, step),
        shared_size=check.integer("shared_expert_intermediate_size") if shared else 0,
    )
    return replace(config, experts=experts if experts.layers else None)


def _sparse_layers(check: ConfigChecker, layers: int, step: int) -> frozenset[int]:
    dense = check.get("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(_is_layer(number, layers) for number in dense):
        check.add(f"mlp_only_layers: must list layers below {layers}, found {show(dense)}")
        return frozenset()
    every = range(step - 1, layers, step) if step else ()
    return frozenset(every) - frozenset(dense)


def _is_layer(number: Any, layers: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < layers
