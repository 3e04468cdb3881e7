"""The hooks a plugin may implement, as base classes.

A plugin subclasses one of these, sets ``info`` and marks each hook it implements with
``@hookimpl``; mypy then checks its signatures against the specs below. Importing this module
costs pluggy and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from qinfer.core.protocols import (
    ExpertLayer,
    Layer,
    Model,
    ModelParts,
    Runner,
    Store,
    StoredTensors,
)
from qinfer.core.stored import StoredWeights
from qinfer.core.types import (
    Array,
    CacheSpec,
    DeviceInfo,
    ExportNeeds,
    LinearSpec,
    LoadStats,
    ModelConfig,
    OperatorBuild,
    PluginInfo,
    QuantPlan,
    RequestStats,
    RunConfig,
    Scheme,
    StepStats,
    Support,
    WeightRule,
)

PROJECT = "qinfer"

_hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorator that marks a plugin's method as the implementation of the hook of that name."""

_Hook = TypeVar("_Hook")


def _every(function: _Hook) -> _Hook:
    """A hook that every registered plugin may answer; the results come as a list."""
    return _hookspec(function)  # type: ignore[no-any-return, call-overload]


def _one(function: _Hook) -> _Hook:
    """A hook that exactly one registered plugin answers."""
    return _hookspec(function, firstresult=True)  # type: ignore[no-any-return, call-overload]


class Plugin:
    """Hooks of every kind of plugin; none is required."""

    info: PluginInfo

    @_every
    def probe(self, device: DeviceInfo) -> Support | None:
        """Say whether this plugin can work on ``device``."""

    @_every
    def configure(self, run: RunConfig) -> None:
        """Called once before anything is loaded, with the whole run's settings."""

    @_every
    def report_header(self, run: RunConfig) -> str | None:
        """A line for the header that ``--stats`` prints."""


class ModelPlugin(Plugin):
    """A model family. Everything but ``chat_prompt`` is required."""

    @_one
    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig | None:
        """Check and translate a parsed config.json. Raises BadCheckpoint naming the key."""

    @_one
    def linear_layers(self, config: ModelConfig) -> Sequence[LinearSpec] | None:
        """Every linear layer the model will ask its parts for, in the order it will."""

    @_one
    def weight_rules(self, config: ModelConfig) -> Sequence[WeightRule] | None:
        """How each parameter comes from the checkpoint. A linear called NAME has the targets
        ``NAME.weight`` and, with a bias, ``NAME.bias``.
        """

    @_one
    def build_model(self, config: ModelConfig, parts: ModelParts) -> Model | None:
        """Build the decoder, asking ``parts`` for each linear and parameter once."""

    @_one
    def chat_prompt(self, config: ModelConfig, messages: Sequence[Mapping[str, str]]) -> str | None:
        """Render messages for a checkpoint that carries no chat template of its own."""


class QuantPlugin(Plugin):
    """A quant scheme. ``plan_quant``, ``pack_weight`` and ``build_linear`` are required."""

    @_one
    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan | None:
        """Choose a scheme for every layer, by name."""

    @_one
    def pack_weight(
        self, spec: LinearSpec, scheme: Scheme, weight: Array
    ) -> Mapping[str, Array] | None:
        """Turn a numpy weight [spec.rows, in_features] (float32, float16 or ml_dtypes
        bfloat16, as the checkpoint has it) into named numpy arrays to be placed on the device.
        A bias is added to them as "bias" by the core.
        """

    @_one
    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer | None:
        """Build the layer over the packed arrays, now device tensors; an ``ExpertLayer`` for a
        spec with experts.
        """

    @_one
    def read_stored(
        self,
        config: ModelConfig,
        raw: Mapping[str, Any],
        weights: Mapping[str, tuple[int, int]],
        checkpoint: StoredTensors,
    ) -> StoredWeights | None:
        """Find the quantised weights in a checkpoint. ``raw`` is the parsed config.json, and
        ``weights`` the names that plain weights of linears would have, with their [out, in].
        Raises BadCheckpoint or Unsupported; reads no more than shapes and small tensors.
        """

    @_one
    def open_store(self) -> Store | None:
        """Give what writes weights in this plugin's format."""

    @_one
    def cache_spec(self, config: ModelConfig, plan: QuantPlan) -> CacheSpec | None:
        """Choose the KV cache's format; without this hook it has the compute dtype."""


class BackendPlugin(Plugin):
    """An execution backend. ``open_runner`` is required."""

    @_one
    def open_runner(
        self, model: Model, config: ModelConfig, cache: CacheSpec, run: RunConfig
    ) -> Runner | None:
        """Allocate the KV cache and return what runs steps."""

    @_one
    def plan_operators(self) -> OperatorBuild | None:
        """What compiling this backend's operators would make here; compiles nothing. Raises
        Unsupported saying why they cannot be built.
        """

    @_one
    def plan_export(self, run: RunConfig) -> ExportNeeds | None:
        """What an export made now would need; called after ``configure``. A backend with this hook
        runs exported models only, so that a checkpoint is exported first.
        """

    @_one
    def export(
        self, model: Model, config: ModelConfig, cache: CacheSpec, run: RunConfig, path: Path
    ) -> Path | None:
        """Write the model into the empty folder ``path``, as files that ``open_export`` reads, and
        return ``path``. ``cache.num_blocks`` is 0: a run chooses it.
        """

    @_one
    def open_export(
        self, needs: ExportNeeds, config: ModelConfig, cache: CacheSpec, run: RunConfig, path: Path
    ) -> Model | None:
        """Read what ``export`` wrote into ``path``, whose files are as they were. Raises
        Unsupported where ``needs`` are not met.
        """


class ObserverPlugin(Plugin):
    """Watches a run. Nothing is required; an observer's failure stops the run."""

    @_every
    def loaded(self, stats: LoadStats) -> None:
        """The model has been loaded."""

    @_every
    def step_done(self, stats: StepStats) -> None:
        """The engine has finished a step."""

    @_every
    def request_done(self, stats: RequestStats) -> None:
        """A request has ended."""


SPECS: Mapping[str, type[Plugin]] = {
    "model": ModelPlugin,
    "quant": QuantPlugin,
    "backend": BackendPlugin,
    "observer": ObserverPlugin,
}

GROUPS: Mapping[str, str] = {
    "model": "qinfer.models",
    "quant": "qinfer.quant",
    "backend": "qinfer.backends",
    "observer": "qinfer.observers",
}
"""Entry-point group of each kind. ``<group>.aliases`` holds further names of the same objects,
``qinfer.models.reads`` the model_types and architectures a model is chosen for by itself, and
``qinfer.quant.reads`` the quant_method or quant_type there that a quant plugin is chosen for."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "model": ("read_config", "linear_layers", "weight_rules", "build_model"),
    "quant": ("plan_quant", "pack_weight", "build_linear"),
    "backend": ("open_runner",),
    "observer": (),
}
