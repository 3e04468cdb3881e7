"""What plugins that read quantised checkpoints have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qinfer.core.errors import UsageError
from qinfer.core.protocols import ExpertLayer, Layer, StoredTensors
from qinfer.core.specs import hookimpl
from qinfer.core.stored import StoredWeights
from qinfer.core.types import Array, LinearSpec, ModelConfig, Scheme
from qinfer.plugins.quant.layers import build_layer
from qinfer.plugins.quant.none import Unquantised

Shapes = Mapping[str, tuple[int, int]]


class StoredFormat(Unquantised):
    """Reads weights that a checkpoint holds quantised; the others keep the model's precision."""

    methods: tuple[str, ...] = ()
    """What quant_method or quant_type in config.json says of this format."""

    def find(
        self,
        config: ModelConfig,
        said: Mapping[str, Any],
        weights: Shapes,
        checkpoint: StoredTensors,
    ) -> StoredWeights:
        """The quantised weights; ``said`` is config.json's quantization_config."""
        raise NotImplementedError

    @hookimpl
    def read_stored(
        self,
        config: ModelConfig,
        raw: Mapping[str, Any],
        weights: Shapes,
        checkpoint: StoredTensors,
    ) -> StoredWeights:
        """The quantised weights. Raises UsageError for a checkpoint of no such format."""
        said = raw.get("quantization_config") or raw.get("compression_config")
        method = ""
        if isinstance(said, Mapping):
            method = str(said.get("quant_method") or said.get("quant_type") or "")
        if method not in self.methods or not isinstance(said, Mapping):
            raise UsageError(
                f"--quant {self.info.name} is for checkpoints quantised so, and config.json says "
                f"nothing of it ({method or 'no quantization_config'})",
                remedy="Leave out --quant, or name a scheme that quantises while loading.",
            )
        return self.find(config, said, weights, checkpoint)

    @hookimpl
    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer:
        """The layer for what the checkpoint holds."""
        return build_layer(spec, scheme, params)
