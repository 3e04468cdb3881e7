"""The published sizes, built without weights: parameter counts, and the table in the docs."""

import math
from dataclasses import replace

import numpy as np
import pytest

import model_table
from published import MODELS
from qinfer.core.model_card import model_card
from qinfer.core.selection import detect_model, open_session


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
    from qinfer.core.config import read_json

    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES[name], dtype="bfloat16")
    card = model_card(read_json(folder / "config.json"), "", [quant])
    with LLM(str(folder), quant=quant) as llm:
        assert llm.load_stats.num_parameters == card.parameters
