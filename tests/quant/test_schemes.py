"""Whole tiny models in every scheme, against float64 products over the quantised weights."""

import numpy as np
import pytest

from goldens import tiny
from qinfer import LLM, SamplingParams

SCHEMES = {"none": 1e-4, "wint8": 0.15, "wint4": 5.0, "a8w8": 0.6, "fp8": 1.5}
"""Largest logit difference to float32 allowed; the tiny models' logits have deviation 3."""


@pytest.mark.parametrize(
    ("case", "quant"),
    [
        *(("gqa", quant) for quant in SCHEMES),
        ("odd_tied", "wint8"),
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


@pytest.mark.parametrize("quant", ["wint8", "weight_only_int8", "wint4", "a8w8", "fp8", "a8w8_fp8"])
def test_the_head_is_left_out_and_said_so(tmp_path, quant):
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES["gqa"])
    with LLM(str(folder), quant=quant) as llm:
        # 160 inputs of the down projections make no whole groups of 64.
        others = {f"layers.{i}.down" for i in range(3)} if quant == "wint4" else set()
        assert set(llm.load_stats.skipped) == {"lm_head", *others}
        assert sum(llm.load_stats.layers_by_scheme.values()) == 4 * 3 + 1
        assert llm.load_stats.layers_by_scheme["none"] == 1 + len(others)
