"""The hooks of a session, typed: what a plugin gives back is checked where it comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qinfer.core.errors import Unsupported
from qinfer.core.protocols import (
    ExpertLayer,
    Layer,
    Model,
    ModelParts,
    Runner,
    Store,
    StoredTensors,
)
from qinfer.core.registry.bound_hook import BoundHook, bind_hooks, describe
from qinfer.core.registry.discovery import PluginRecord
from qinfer.core.registry.results import check_layers, check_packed, check_plan, check_stored
from qinfer.core.specs import Plugin
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

_T = TypeVar("_T")


class Hooks:
    """The hooks of the selected plugins.

    Every method passes a plugin's QinferError on, raises BrokenPlugin naming the plugin for any
    other failure or a wrong result, and Unsupported when no selected plugin has that hook.
    """

    def __init__(self, plugins: Sequence[tuple[PluginRecord, Plugin]]) -> None:
        """Register checked plugins. Raises BrokenPlugin when two answer a one-answer hook."""
        self._plugins = plugins
        self._hooks = bind_hooks(plugins)

    def _one(self, name: str) -> BoundHook:
        if not self._hooks[name]:
            selected = ", ".join(record.label for record, _ in self._plugins)
            raise Unsupported(f"none of the selected plugins can {name}: {selected or 'none'}")
        return self._hooks[name][0]

    def _each(
        self, name: str, expected: type[_T], **arguments: Any
    ) -> list[tuple[PluginRecord, _T]]:
        """Every plugin's answer; one that gives None has nothing to say."""
        found = []
        for hook in self._hooks[name]:
            for value in hook(**arguments):
                if not isinstance(value, expected):
                    raise hook.wrong(f"{describe(value)} where {expected.__name__} is needed")
                found.append((hook.record, value))
        return found

    def record(self, kind: str) -> PluginRecord:
        """Where the selected plugin of that kind comes from. Raises LookupError without one."""
        for record, _ in self._plugins:
            if record.kind == kind:
                return record
        raise LookupError(f"this session has no {kind} plugin")

    def plugin(self, kind: str) -> PluginInfo:
        """What the selected plugin of that kind says of itself. Raises LookupError without one."""
        for record, plugin in self._plugins:
            if record.kind == kind:
                return plugin.info
        raise LookupError(f"this session has no {kind} plugin")

    def probe(self, device: DeviceInfo) -> list[tuple[PluginRecord, Support]]:
        """Which of the plugins that care can work on the device."""
        return self._each("probe", Support, device=device)

    def require_support(self, device: DeviceInfo) -> None:
        """Raise Unsupported for the first plugin that cannot work on the device."""
        for record, support in self.probe(device):
            if not support.ok:
                where = f"{device.kind} {device.name}".strip()
                why = support.reason or "it gives no reason"
                message = f"{record.label} cannot run on {where}: {why}"
                raise Unsupported(message, remedy=support.remedy)

    def configure(self, run: RunConfig) -> None:
        """Tell every plugin the run's settings."""
        for hook in self._hooks["configure"]:
            hook(run=run)

    def report_header(self, run: RunConfig) -> list[str]:
        """The plugins' lines for the header."""
        return [line for _, line in self._each("report_header", str, run=run)]

    def read_config(self, raw: Mapping[str, Any]) -> ModelConfig:
        """Translate a parsed config.json."""
        return self._one("read_config").typed(ModelConfig, raw=raw)

    def linear_layers(self, config: ModelConfig) -> Sequence[LinearSpec]:
        """Every linear layer of the model; names are unique, parts add up."""
        hook = self._one("linear_layers")
        layers = hook.items(LinearSpec, config=config)
        check_layers(hook, layers)
        return layers

    def weight_rules(self, config: ModelConfig) -> Sequence[WeightRule]:
        """How each parameter comes from the checkpoint."""
        return self._one("weight_rules").items(WeightRule, config=config)

    def build_model(self, config: ModelConfig, parts: ModelParts) -> Model:
        """Build the decoder."""
        model: Model = self._one("build_model").callables("__call__", config=config, parts=parts)
        return model

    def chat_prompt(self, config: ModelConfig, messages: Sequence[Mapping[str, str]]) -> str | None:
        """Messages as the family's prompt, or None when the plugin leaves that to a template."""
        if not self._hooks["chat_prompt"]:
            return None
        return self._one("chat_prompt").typed(str, config=config, messages=messages)

    def plan_quant(
        self, config: ModelConfig, layers: Sequence[LinearSpec], device: DeviceInfo
    ) -> QuantPlan:
        """A scheme for every layer, and for nothing else."""
        hook = self._one("plan_quant")
        plan = hook.typed(QuantPlan, config=config, layers=layers, device=device)
        check_plan(hook, plan, layers)
        return plan

    def pack_weight(self, spec: LinearSpec, scheme: Scheme, weight: Array) -> Mapping[str, Array]:
        """A weight as named arrays, numpy's or on the device; the name "bias" is the core's."""
        hook = self._one("pack_weight")
        params = hook.typed(Mapping, spec=spec, scheme=scheme, weight=weight)  # type: ignore[type-abstract]
        check_packed(hook, params)
        return params

    def build_linear(
        self, spec: LinearSpec, scheme: Scheme, params: Mapping[str, Array]
    ) -> Layer | ExpertLayer:
        """The layer over packed arrays."""
        hook = self._one("build_linear")
        layer: Layer | ExpertLayer = hook.callables(
            "__call__", spec=spec, scheme=scheme, params=params
        )
        return layer

    def read_stored(
        self,
        config: ModelConfig,
        raw: Mapping[str, Any],
        weights: Mapping[str, tuple[int, int]],
        checkpoint: StoredTensors,
    ) -> StoredWeights | None:
        """A checkpoint's quantised weights, or None when the scheme reads plain ones only."""
        if not self._hooks["read_stored"]:
            return None
        hook = self._one("read_stored")
        stored = hook.typed(
            StoredWeights, config=config, raw=raw, weights=weights, checkpoint=checkpoint
        )
        check_stored(hook, stored, weights)
        return stored

    def open_store(self) -> Store:
        """What writes weights in the format's own way."""
        store: Store = self._one("open_store").callables("linear", "files")
        return store

    def cache_spec(self, config: ModelConfig, plan: QuantPlan) -> CacheSpec | None:
        """The KV cache's format, or None when the scheme leaves it to the core."""
        if not self._hooks["cache_spec"]:
            return None
        return self._one("cache_spec").typed(CacheSpec, config=config, plan=plan)

    def open_runner(
        self, model: Model, config: ModelConfig, cache: CacheSpec, run: RunConfig
    ) -> Runner:
        """Allocate the KV cache and give what runs steps."""
        hook = self._one("open_runner")
        runner: Runner = hook.callables(
            "step", "close", model=model, config=config, cache=cache, run=run
        )
        return runner

    def plan_operators(self) -> OperatorBuild:
        """What compiling the backend's operators would make."""
        return self._one("plan_operators").typed(OperatorBuild)

    @property
    def runs_exports(self) -> bool:
        """Whether the backend runs exported models only."""
        return bool(self._hooks["plan_export"])

    def plan_export(self, run: RunConfig) -> ExportNeeds:
        """What an export made now would need where it runs."""
        return self._one("plan_export").typed(ExportNeeds, run=run)

    def export(
        self, model: Model, config: ModelConfig, cache: CacheSpec, run: RunConfig, path: Path
    ) -> Path:
        """Write the model as files that run without its plugin."""
        hook = self._one("export")
        return hook.typed(Path, model=model, config=config, cache=cache, run=run, path=path)

    def open_export(
        self, needs: ExportNeeds, config: ModelConfig, cache: CacheSpec, run: RunConfig, path: Path
    ) -> Model:
        """The model that was exported into ``path``."""
        settings = {"needs": needs, "config": config, "cache": cache, "run": run, "path": path}
        model: Model = self._one("open_export").callables("__call__", **settings)
        return model

    def loaded(self, stats: LoadStats) -> None:
        """Tell the observers that the model is loaded."""
        for hook in self._hooks["loaded"]:
            hook(stats=stats)

    def step_done(self, stats: StepStats) -> None:
        """Tell the observers of a step; costs a dictionary look-up when there is none."""
        for hook in self._hooks["step_done"]:
            hook(stats=stats)

    def request_done(self, stats: RequestStats) -> None:
        """Tell the observers that a request has ended."""
        for hook in self._hooks["request_done"]:
            hook(stats=stats)
