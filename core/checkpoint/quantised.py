"""Finding what of a checkpoint is quantised, and whether that agrees with what the user named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.rules import check_rule, source_shapes
from qinfer.core.checkpoint.stored_arrays import MISSING, bad
from qinfer.core.checkpoint.stored_view import StoredView
from qinfer.core.errors import UsageError
from qinfer.core.registry.discovery import PluginRecord
from qinfer.core.registry.hooks import Hooks
from qinfer.core.registry.selection import stored_method
from qinfer.core.stored import StoredWeights
from qinfer.core.types import ModelConfig


def open_stored(
    raw: Mapping[str, Any], checkpoint: Checkpoint, hooks: Hooks, config: ModelConfig
) -> tuple[Checkpoint, StoredWeights]:
    """The checkpoint with its quantised weights found by the quant plugin, where that reads any."""
    weights: dict[str, tuple[int, int]] = {}
    for rule in hooks.weight_rules(config):
        check_rule(rule)
        if rule.linear:
            for name, shape in zip(rule.source, source_shapes(rule), strict=True):
                weights[name] = (shape[0], shape[1])
    stored = hooks.read_stored(config, raw, weights, checkpoint)
    if stored is None:
        return checkpoint, StoredWeights(linears={})
    present = frozenset(checkpoint.names())
    for linear in stored.linears.values():
        for name in linear.tensors:
            if name not in present:
                raise bad(checkpoint, name, MISSING)
    return StoredView(checkpoint, stored.linears), stored


def check_agreement(
    raw: Mapping[str, Any],
    checkpoint: Checkpoint,
    named: PluginRecord | None,
    reader: PluginRecord,
) -> None:
    """Raise UsageError where the user named another scheme than the quantised checkpoint has."""
    if named is None or named == reader:
        return
    schemes = {
        linear.scheme.name
        for name in checkpoint.names()
        if (linear := checkpoint.stored(name)) is not None
    }
    if not {named.name, *named.aliases} & {*schemes, stored_method(raw)}:
        kinds = ", ".join(sorted(schemes)) or "nothing"
        raise UsageError(
            f"--quant {named.name} contradicts the checkpoint, which is quantised already "
            f"({kinds}; read by {reader.name})",
            remedy=f"Leave out --quant, or say --quant {reader.name}.",
        )
