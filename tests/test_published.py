"""The published sizes, built without weights: parameter counts, and the table in the docs."""

import math
from dataclasses import replace

import numpy as np
import pytest

import model_table
from qinfer.core import published
from qinfer.core.errors import UsageError
from qinfer.core.model_card import model_card, step_bytes
from qinfer.core.published import MODELS
from qinfer.core.registry.selection import detect_model, open_session, resolve
from qinfer.core.types import CacheSpec, DeviceInfo


class Shapes:
    """Model parts that hold nothing: every linear and parameter asked for, with its size."""

    def __init__(self, rules):
        self.left = {}
        for rule in rules:
            if rule.op != "skip":
                self.left.setdefault(rule.target, rule)
        self.counted = {}

    def linear(self, spec):
        assert self.left[f"{spec.name}.weight"].shape == (spec.rows, spec.in_features)
        self.parameter(f"{spec.name}.weight")
        if spec.bias:
            assert self.left[f"{spec.name}.bias"].shape == (spec.rows,)
            self.parameter(f"{spec.name}.bias")
        return lambda *_: None

    experts = linear

    def parameter(self, name, dtype=""):
        rule = self.left.pop(name)
        self.counted[rule.source] = math.prod(rule.shape)
        return np.empty(0)

    def constant(self, array, dtype=""):
        return array


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_published_size_has_its_published_parameters(model):
    hooks = open_session([detect_model(model.config)])
    config = replace(hooks.read_config(model.config), max_position_embeddings=4)
    parts = Shapes(hooks.weight_rules(config))
    hooks.build_model(config, parts)
    assert parts.left == {}
    built = sum(parts.counted.values())
    assert built == pytest.approx(model.total, rel=0.005)
    assert built == model_card(model.config, "", []).parameters


def test_the_table_in_the_docs_is_that_of_the_configurations():
    assert model_table.current() == model_table.table(), "PYTHONPATH=tests python -m model_table"


def test_names_of_mixtures_say_how_much_a_token_uses():
    active = {"Qwen1.5-MoE-A2.7B": 2.7, "Qwen2-57B-A14B": 14, "Qwen3-30B-A3B": 3.3}
    active["Qwen3-235B-A22B"] = 22
    for model in MODELS:
        card = model_card(model.config, "", [])
        if model.name in active:
            assert card.active_parameters / 1e9 == pytest.approx(active.pop(model.name), rel=0.03)
        else:
            assert card.active_parameters == card.parameters
    assert not active


@pytest.mark.parametrize("name", ["gqa", "gqa_tied", "moe_dense", "qwen3_moe", "qwen"])
@pytest.mark.parametrize("quant", ["none", "wint8", "fp8", "wint4"])
def test_a_card_counts_what_loading_counts(name, quant, tmp_path):
    from goldens import tiny
    from qinfer import LLM
    from qinfer.core.json_file import read_json

    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES[name], dtype="bfloat16")
    card = model_card(read_json(folder / "config.json"), "", [quant])
    with LLM(str(folder), quant=quant) as llm:
        assert llm.load_stats.num_parameters == card.parameters


def read_by_a_step(model, sequences, context=0):
    hooks = open_session([detect_model(model), resolve("quant", "none")])
    config = replace(hooks.read_config(model), compute_dtype="float32")
    linears = hooks.linear_layers(config)
    plan = hooks.plan_quant(config, linears, DeviceInfo(kind="cpu"))
    cache = CacheSpec(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype="bfloat16",
    )
    return step_bytes(config, linears, plan, cache, sequences, context)


def test_a_step_reads_the_linears_and_the_cache():
    model = published.find("qwen2-7b").config
    layer = 3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944
    weights = 2 * (28 * layer + 152064 * 3584)
    assert read_by_a_step(model, 1) == weights
    assert read_by_a_step(model, 8, 512) - weights == 8 * 512 * 28 * 2 * 512 * 2


def test_a_step_reads_the_experts_it_uses():
    model = published.find("Qwen3-30B-A3B").config
    expert, every = 2 * 3 * 2048 * 768 * 48, read_by_a_step(model, 10_000)
    assert every - read_by_a_step(model, 1) == pytest.approx(120 * expert, rel=1e-6)
    used = 128 * (1 - (1 - 8 / 128) ** 16)
    assert every - read_by_a_step(model, 16) == pytest.approx((128 - used) * expert, rel=1e-6)


def test_a_published_name_is_found_or_the_nearest_named():
    assert published.find("qwq-32b").name == "Qwen2.5-32B, QwQ-32B"
    with pytest.raises(
        UsageError, match=r"no published configuration is called 'qwen2-8b'"
    ) as found:
        published.find("qwen2-8b")
    assert "qwen2-7b" in found.value.remedy
