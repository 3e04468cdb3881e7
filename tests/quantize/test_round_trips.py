"""Quantised, written and read again: the same logits, bit for bit, in both formats."""

from __future__ import annotations

import numpy as np
import pytest

from goldens import tiny
from qinfer.core.progress import NoProgress
from qinfer.core.quantize import quantize as quantizing
from qinfer.core.quantize.forward import run_calibration
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops import table

LENGTH = 48
MODELS = {**tiny.CASES, "wide": tiny.WIDE, "wide_experts": tiny.WIDE_EXPERTS}
FAMILIES = ["qwen_plain", "gqa", "moe", "moe_norm", "qwen3", "qwen3_moe"]
SCHEMES = [
    {"quant": "wint8", "method": "awq+gptq"},
    {"quant": "wint8", "method": "percentile"},
    {"quant": "wint4", "group_size": 16},
    {"quant": "wint4", "group_size": -1, "method": "awq+mse"},
    {"quant": "wint4", "group_size": 16, "zero_points": True, "method": "awq+gptq"},
    {"quant": "wint4-channel-zp", "method": "percentile"},
    {"quant": "a8w8", "method": "smoothquant+gptq"},
    {"quant": "a8w8", "format": "paddlenlp", "method": "mse", "skip": "*.down,layers.1.*"},
    {"quant": "a8w8c8", "activations": "tensor", "method": "smoothquant+mse"},
    {"quant": "a8w8c8", "format": "paddlenlp"},
    {"quant": "fp8", "kv_cache_dtype": "fp8"},
    {"quant": "fp8", "activations": "tensor", "method": "percentile", "kv_cache_dtype": "int8"},
    {"quant": "fp8", "format": "paddlenlp", "kv_cache_dtype": "int8"},
]
GROUPS = ["wint4", "wint4-zp", "wint4-g128", "wint4-g128-zp", "wint4-channel"]
"""Which need as many inputs as only wide models have."""

CASES = [
    *((family, changes) for family in FAMILIES for changes in SCHEMES),
    *((name, {"quant": quant}) for name in ("wide", "wide_experts") for quant in GROUPS),
]


def name_of(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A bfloat16 checkpoint of each family, written once."""
    made = {}

    def folder(family):
        if family not in made:
            path = tmp_path_factory.mktemp("round") / family
            made[family] = tiny.write_checkpoint(path, MODELS[family], dtype="bfloat16")
        return made[family]

    return folder


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    yield
    table.use(table.REFERENCE)


def quantised(folder, output, monkeypatch, **changes):
    """What ``quantize`` writes, and what it computed with while it quantised: the logits after the
    tokens it calibrated with, and the KV cache's scales.
    """
    tokens = np.random.default_rng(7).integers(0, 150, LENGTH).tolist()
    seen = {}

    def watched(name, original):
        def call(*arguments, **options):
            seen[name] = original(*arguments, **options)
            return seen[name]

        monkeypatch.setattr(quantizing, original.__name__, call)

    watched("left", quantizing.run_calibration)
    watched("scales", quantizing.cache_scales)
    monkeypatch.setattr(quantizing, "_pieces", lambda *_: [tokens])
    settings = QuantizeSettings(model=str(folder), **changes)
    report = quantizing.quantize(settings, output, NoProgress())
    return tokens, seen["left"].logits.numpy(), seen.get("scales", (None,))[0], report


@pytest.mark.parametrize(("family", "changes"), CASES, ids=name_of)
def test_the_logits_are_those_of_the_model_that_was_written(
    folders, tmp_path, monkeypatch, family, changes
):
    check(folders(family), tmp_path / "out", monkeypatch, changes)


@pytest.mark.parametrize("changes", SCHEMES, ids=name_of)
def test_so_they_are_with_the_native_operators(folders, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("QINFER_OPERATORS", "")
    check(folders("gqa"), tmp_path / "out", monkeypatch, changes)


def check(folder, output, monkeypatch, changes):
    tokens, logits, scales, report = quantised(folder, output, monkeypatch, **changes)
    run = RunConfig(model=str(output))
    opened = load_model(run, select(run), output, NoProgress())
    keep = scales is not None
    again = run_calibration(opened.model, opened.config, [tokens], keep_cache=keep)
    np.testing.assert_array_equal(again.logits.numpy(), logits)
    assert (scales is None) == (opened.plan.kv_scales is None)
    if scales is not None:
        np.testing.assert_array_equal(opened.plan.kv_scales, scales)
        assert opened.plan.kv_cache == report["kv_cache"]["dtype"]
    count = sum(n for name, n in opened.stats.layers_by_scheme.items() if name != "none")
    assert count == len(report["linears"])
    assert set(opened.stats.skipped) == set(report["skipped"])
