"""The typed facade: what a plugin returns or raises, and whom the error names."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from qinfer.core.errors import BadCheckpoint, BrokenPlugin, Unsupported
from qinfer.core.registry.discovery import PluginRecord
from qinfer.core.registry.hooks import Hooks
from qinfer.core.specs import BackendPlugin, ModelPlugin, ObserverPlugin, QuantPlugin, hookimpl
from qinfer.core.types import (
    CacheSpec,
    DeviceInfo,
    ExportNeeds,
    LinearSpec,
    ModelConfig,
    OperatorBuild,
    PluginInfo,
    QuantPlan,
    RunConfig,
    Scheme,
    StepStats,
    Support,
    WeightRule,
)

CONFIG = ModelConfig(
    model_type="toy",
    vocab_size=8,
    hidden_size=4,
    intermediate_size=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    max_position_embeddings=16,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    tie_word_embeddings=True,
)
SPEC = LinearSpec(name="a", role="qkv", in_features=4, out_features=8, parts=(4, 2, 2))
SCHEME = Scheme(name="plain", weight_dtype="float32")
DEVICE = DeviceInfo(kind="cpu")
NEEDS = ExportNeeds(operators="reference")
CACHE = CacheSpec(num_layers=1, num_kv_heads=1, head_dim=2)
STEP = StepStats(prefill_tokens=1, decode_tokens=0, seconds=0.1, running=1, waiting=0, kv_usage=0.5)
BASES = {
    "model": ModelPlugin,
    "quant": QuantPlugin,
    "backend": BackendPlugin,
    "observer": ObserverPlugin,
}


class Runner:
    def step(self, batch, sampling): ...
    def close(self): ...


def answering(kind, hook, answer, name="toy"):
    """A record and a plugin whose ``hook`` gives ``answer``, raising it if it is an exception."""

    def implementation(self):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    implementation.__name__ = hook
    info = PluginInfo(name=name, kind=kind, api="1.0")
    members = {"info": info, hook: hookimpl(implementation)}
    entry = EntryPoint(name=name, value="toy:P", group="")
    record = PluginRecord(
        kind=kind, name=name, dist="toys", version="9", value="toy:P", entry_point=entry
    )
    return record, type("P", (BASES[kind],), members)()


CALLS = {
    "read_config": ("model", [{}]),
    "linear_layers": ("model", [CONFIG]),
    "weight_rules": ("model", [CONFIG]),
    "build_model": ("model", [CONFIG, None]),
    "chat_prompt": ("model", [CONFIG, []]),
    "plan_quant": ("quant", [CONFIG, [SPEC], DEVICE]),
    "pack_weight": ("quant", [SPEC, SCHEME, None]),
    "build_linear": ("quant", [SPEC, SCHEME, {}]),
    "cache_spec": ("quant", [CONFIG, QuantPlan(by_layer={})]),
    "open_runner": ("backend", [print, CONFIG, CACHE, RunConfig()]),
    "plan_operators": ("backend", []),
    "plan_export": ("backend", [RunConfig()]),
    "export": ("backend", [print, CONFIG, CACHE, RunConfig(), None]),
    "open_export": ("backend", [NEEDS, CONFIG, CACHE, RunConfig(), None]),
    "probe": ("observer", [DEVICE]),
    "report_header": ("observer", [RunConfig()]),
}


def call(hook, answer):
    kind, arguments = CALLS[hook]
    return getattr(Hooks([answering(kind, hook, answer)]), hook)(*arguments)


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        ("read_config", CONFIG),
        ("linear_layers", [SPEC]),
        ("weight_rules", (WeightRule(target="a.weight", source=("a",)),)),
        ("build_model", print),
        ("chat_prompt", "hello"),
        ("plan_quant", QuantPlan(by_layer={"a": SCHEME}, skipped={"a": "too small"})),
        ("pack_weight", {"weight": np.zeros(3)}),
        ("build_linear", print),
        ("cache_spec", CACHE),
        ("open_runner", Runner()),
        ("plan_operators", OperatorBuild(library=Path("a.so"), is_built=False, build=Path)),
        ("plan_export", NEEDS),
        ("export", Path("a")),
        ("open_export", print),
    ],
)
def test_a_right_answer_passes_unchanged(hook, answer):
    assert call(hook, answer) is answer


@pytest.mark.parametrize(
    ("hook", "answer", "text"),
    [
        ("read_config", {}, "a dict where ModelConfig is needed"),
        ("read_config", None, "None where ModelConfig is needed"),
        ("linear_layers", None, "None where a sequence of LinearSpec is needed"),
        ("linear_layers", (s for s in [SPEC]), "a generator where a sequence"),
        ("linear_layers", [SPEC, "b"], "a str at [1]"),
        ("linear_layers", [SPEC, SPEC], 'two layers called "a"'),
        ("linear_layers", [dataclasses.replace(SPEC, parts=(4, 2))], "do not add up to 8"),
        ("weight_rules", [SPEC], "a LinearSpec at [0] where WeightRule is needed"),
        ("build_model", 3, "no method __call__"),
        ("chat_prompt", b"hello", "a bytes where str is needed"),
        ("chat_prompt", None, "None where str is needed"),
        ("plan_quant", {"a": SCHEME}, "a dict where QuantPlan is needed"),
        ("plan_quant", QuantPlan(by_layer={}), "no scheme for a"),
        ("plan_quant", QuantPlan(by_layer={"a": SCHEME, "b": SCHEME}), "unknown b"),
        ("plan_quant", QuantPlan(by_layer={"a": SCHEME}, skipped={"c": ""}), "unknown c"),
        ("plan_quant", QuantPlan(by_layer={"a": "fp8"}), 'a str for "a" where Scheme'),
        ("pack_weight", [np.zeros(3)], "a list where Mapping is needed"),
        ("pack_weight", {"weight": [0.0]}, "'weight': a list"),
        ("pack_weight", {"bias": np.zeros(3)}, "'bias'"),
        ("build_linear", None, "no method __call__"),
        ("cache_spec", {}, "a dict where CacheSpec is needed"),
        ("open_runner", print, "no method step"),
        ("plan_operators", Path("a.so"), "Path where OperatorBuild is needed"),
        ("plan_export", "reference", "a str where ExportNeeds is needed"),
        ("export", "path", "a str where Path is needed"),
        ("open_export", None, "no method __call__"),
        ("probe", True, "a bool where Support is needed"),
        ("report_header", 3, "an int where str is needed"),
    ],
)
def test_a_wrong_answer_names_plugin_hook_and_what_came(hook, answer, text):
    with pytest.raises(BrokenPlugin) as caught:
        call(hook, answer)
    assert caught.value.exit_code == 3
    assert f'{CALLS[hook][0]} plugin "toy" (toys 9) returned from {hook}' in caught.value.message
    assert text in caught.value.message
    assert "toys" in caught.value.remedy


@pytest.mark.parametrize("error", [KeyError("rope"), SystemExit(3), StopIteration(1)])
@pytest.mark.parametrize("hook", CALLS)
def test_a_plugin_s_exception_is_chained_and_named(hook, error):
    with pytest.raises(BrokenPlugin, match=rf'"toy" \(toys 9\) failed in {hook}') as caught:
        call(hook, error)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [BadCheckpoint("no rope", remedy="get one"), KeyboardInterrupt()])
@pytest.mark.parametrize("hook", CALLS)
def test_our_own_errors_pass_through(hook, error):
    with pytest.raises(type(error)) as caught:
        call(hook, error)
    assert caught.value is error


def test_optional_hooks_without_an_implementer():
    hooks = Hooks([])
    assert hooks.chat_prompt(CONFIG, []) is None
    assert hooks.cache_spec(CONFIG, QuantPlan(by_layer={})) is None
    assert hooks.report_header(RunConfig()) == []
    hooks.configure(RunConfig())
    hooks.step_done(STEP)
    with pytest.raises(Unsupported, match="can export"):
        hooks.export(print, CONFIG, CACHE, RunConfig(), None)
    assert not hooks.runs_exports
    with pytest.raises(LookupError):
        hooks.plugin("model")


def test_two_implementers_of_a_one_answer_hook_are_refused():
    pair = [answering("model", "read_config", CONFIG, name) for name in ("one", "two")]
    with pytest.raises(BrokenPlugin, match="read_config") as caught:
        Hooks(pair)
    assert '"one"' in caught.value.message
    assert '"two"' in caught.value.message


def test_the_failing_one_of_several_observers_is_named():
    plugins = [answering("observer", "step_done", None, "calm")]
    plugins += [answering("observer", "step_done", ValueError("no"), "wild")]
    with pytest.raises(BrokenPlugin, match='"wild"'):
        Hooks(plugins).step_done(STEP)


def test_support_is_required_of_every_plugin():
    fine = answering("model", "probe", Support(ok=True))
    mute = answering("backend", "probe", None)
    bad = answering("quant", "probe", Support(ok=False, reason="no fp8", remedy="use wint8"))
    Hooks([fine, mute]).require_support(DEVICE)
    assert [record.kind for record, _ in Hooks([fine, mute]).probe(DEVICE)] == ["model"]
    with pytest.raises(Unsupported, match="cannot run on cpu: no fp8") as caught:
        Hooks([fine, mute, bad]).require_support(DEVICE)
    assert caught.value.remedy == "use wint8"
    assert '"toy" (toys 9)' in caught.value.message


def test_plugin_tells_its_info():
    assert Hooks([answering("quant", "probe", None)]).plugin("quant").kind == "quant"
