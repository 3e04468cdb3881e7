"""What a model is and what it needs, from its config.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qinfer.core.checkpoint.rules import num_parameters
from qinfer.core.loading import cache_layout
from qinfer.core.registry.discovery import discover
from qinfer.core.registry.selection import detect_model, open_session, resolve
from qinfer.core.types import CacheSpec, LinearSpec, ModelConfig, QuantPlan, Scheme, WeightRule

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "float8_e4m3fn": 8, "int4": 4}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes of a model in one scheme: its parameters, and the KV cache of one token."""

    parameter_bytes: int
    cache_bytes_per_token: int


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model: the plugin that reads it, its parameters, and by scheme what it needs.

    ``active_parameters``: those that a token's computation reads, without the experts that are
    not chosen for it.
    """

    plugin: str
    config: ModelConfig
    parameters: int
    active_parameters: int
    needs: Mapping[str, Needs]


def model_card(raw: Mapping[str, Any], plugin: str, schemes: Sequence[str]) -> ModelCard:
    """The card of a parsed config.json, read by ``plugin`` or, if that is empty, whichever fits.

    Raises as loading would: PluginNotFound, BadCheckpoint, BrokenPlugin.
    """
    from qinfer.core.hardware.device import open_device
    from qinfer.core.hardware.start_paddle import import_paddle

    import_paddle()
    device, installed = open_device("auto"), discover()
    record = resolve("model", plugin, installed) if plugin else detect_model(raw, installed)
    model = open_session([record])
    config, needs = model.read_config(raw), {}
    config = replace(config, compute_dtype=device.compute_dtypes[0])
    linears, rules = model.linear_layers(config), _chosen(model.weight_rules(config))
    for name in schemes:
        quant = open_session([resolve("quant", name, installed)])
        plan = quant.plan_quant(config, linears, device)
        cache = cache_layout(quant, config, plan, CacheSpec.block_size)
        needs[name] = Needs(
            parameter_bytes=_bytes(config, linears, rules, plan),
            cache_bytes_per_token=cache.bytes_per_block // cache.block_size,
        )
    parameters = num_parameters(rules)
    return ModelCard(
        plugin=record.name,
        config=config,
        parameters=parameters,
        active_parameters=parameters - _idle(config, linears),
        needs=needs,
    )


def _chosen(rules: Iterable[WeightRule]) -> list[WeightRule]:
    """One rule for each target: the alternatives have the same shape."""
    first: dict[str, WeightRule] = {}
    for rule in rules:
        if rule.op != "skip":
            first.setdefault(rule.target, rule)
    return list(first.values())


def _idle(config: ModelConfig, linears: Iterable[LinearSpec]) -> int:
    """Weights of experts that a token is not sent through."""
    if config.experts is None:
        return 0
    idle = config.experts.count - config.experts.top_k
    return sum(idle * spec.out_features * spec.in_features for spec in linears if spec.experts)


def _bytes(
    config: ModelConfig,
    linears: Iterable[LinearSpec],
    rules: Iterable[WeightRule],
    plan: QuantPlan,
) -> int:
    """Linears as their schemes hold them, everything else in the model's precision."""
    weights = {f"{spec.name}.weight" for spec in linears}
    others = num_parameters(rule for rule in rules if rule.target not in weights)
    bits = others * BITS[config.dtype]
    return bits // 8 + sum(linear_bytes(spec, plan.by_layer[spec.name]) for spec in linears)


def linear_bytes(spec: LinearSpec, scheme: Scheme) -> int:
    """What a linear's weight and scales take in a scheme, all experts together."""
    scales = {"channel": spec.rows, "tensor": 1}.get(scheme.weight_scale, 0)
    if scheme.weight_scale == "group" and scheme.group_size:
        scales = spec.rows * -(-spec.in_features // scheme.group_size)
    return (spec.rows * spec.in_features * BITS.get(scheme.weight_dtype, 32) + 32 * scales) // 8


def step_bytes(
    config: ModelConfig,
    linears: Iterable[LinearSpec],
    plan: QuantPlan,
    cache: CacheSpec,
    sequences: int,
    context: int,
) -> int:
    """The least that a decoding step reads: every linear once, and the keys and values of
    ``sequences`` of ``context`` tokens. Of experts those that as many tokens use on average, were
    the choices independent.
    """
    total = sequences * context * cache.bytes_per_block // cache.block_size
    for spec in linears:
        size = linear_bytes(spec, plan.by_layer[spec.name])
        if spec.experts and config.experts is not None:
            missed = (1 - config.experts.top_k / config.experts.count) ** sequences
            size = int(size * (1 - missed))
        total += size
    return total
