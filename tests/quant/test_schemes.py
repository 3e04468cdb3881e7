"""Whole tiny models in every scheme, against float64 products over the quantised weights."""

import numpy as np
import pytest

from goldens import tiny
from qinfer import LLM, SamplingParams
from qinfer.core.errors import UsageError

SCHEMES = {
    "none": 1e-4,
    "wint8": 0.15,
    "wint8-h8": 0.2,
    "wint4": 5.0,
    "wint4-h8": 5.0,
    "a8w8": 0.6,
    "fp8": 1.5,
}
"""Largest logit difference to float32 allowed; the tiny models' logits have deviation 3."""


@pytest.mark.parametrize(
    ("case", "quant"),
    [
        *(("gqa", quant) for quant in SCHEMES),
        ("odd_tied", "wint8"),
        ("odd_tied", "wint8-h8"),
        ("odd_tied", "a8w8"),
        ("odd_tied", "fp8"),
    ],
)
def test_a_scheme_stays_near_the_float32_logits(tmp_path, case, quant):
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES[case])
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20, ignore_eos=True)
    tops = {}
    for scheme in ("none", quant):
        with LLM(str(folder), quant=scheme, dtype="float32") as llm:
            (entry,) = llm.generate("hello world", params)[0].completions[0].logprobs
        tops[scheme] = {token: logprob for token, _, logprob in entry.top}
    both = tops["none"].keys() & tops[quant].keys()
    assert len(both) >= 10
    difference = np.array([tops["none"][token] - tops[quant][token] for token in both])
    # Log-probabilities share one offset, which says nothing about single logits.
    assert np.abs(difference - difference.mean()).max() < SCHEMES[quant]
    if quant != "none":
        assert np.abs(difference).max() > 0, "the scheme changed nothing at all"


@pytest.mark.parametrize(
    "quant", ["wint8", "weight_only_int8", "wint4", "a8w8", "a8w8c8", "fp8", "a8w8_fp8"]
)
def test_the_head_is_left_out_and_said_so(tmp_path, quant):
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES["gqa"])
    with LLM(str(folder), quant=quant) as llm:
        # 160 inputs of the down projections make no whole groups of 64.
        others = {f"layers.{i}.down" for i in range(3)} if quant == "wint4" else set()
        assert set(llm.load_stats.skipped) == {"lm_head", *others}
        assert sum(llm.load_stats.layers_by_scheme.values()) == 4 * 3 + 1
        assert llm.load_stats.layers_by_scheme["none"] == 1 + len(others)


@pytest.mark.parametrize(("case", "quant"), [("gqa", "wint4-h8"), ("odd_tied", "wint8-h8")])
def test_the_head_is_int8_where_the_scheme_says_so(tmp_path, case, quant):
    """Of a tied embedding that is a copy: the rows that are looked up keep their precision."""
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES[case])
    with LLM(str(folder), quant=quant, dtype="float32") as llm:
        assert "lm_head" not in llm.load_stats.skipped
        assert llm.loaded.plan.by_layer["lm_head"].name == "wint8"
    with LLM(str(folder), quant=quant.removesuffix("-h8"), dtype="float32") as plain:
        assert plain.loaded.plan.by_layer["lm_head"].name == "none"
        assert llm.load_stats.parameter_bytes < plain.load_stats.parameter_bytes


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"quant": "a8w8c8"}, "int8"),
        ({"quant": "wint8", "kv_cache_dtype": "int8"}, "int8"),
        ({"quant": "none", "kv_cache_dtype": "fp8"}, "float8_e4m3fn"),
        ({"quant": "a8w8c8", "kv_cache_dtype": "fp8"}, "float8_e4m3fn"),
        ({"quant": "a8w8"}, "float32"),
    ],
)
def test_the_kv_cache_is_as_asked_or_as_the_scheme_wants(tmp_path, monkeypatch, options, dtype):
    from qinfer.plugins.backends import dynamic

    made, plain = [], dynamic.DynamicRunner

    def runner(model, cache, **more):
        made.append(cache.dtype)
        return plain(model, cache, **more)

    monkeypatch.setattr(dynamic, "DynamicRunner", runner)
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES["gqa"])
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    with LLM(str(folder), dtype="float32", **options) as llm:
        assert len(llm.generate("hello", params)[0].completions[0].token_ids) == 6
    assert made == [dtype]


def test_an_unknown_kv_cache_dtype_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown kv_cache_dtype 'int3'"):
        LLM(str(tmp_path), kv_cache_dtype="int3")
