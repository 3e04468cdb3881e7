"""An exported program computes what the model it was made from computes."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goldens import tiny
from goldens.steps import step_logits
from qinfer import LLM, SamplingParams
from qinfer.core.errors import Unsupported
from qinfer.core.export.codec import from_json, to_json
from qinfer.core.hardware.start_paddle import import_paddle
from qinfer.core.loading import cache_layout
from qinfer.core.types import CacheSpec
from qinfer.plugins.backends.program import StaticModel, save
from static.conftest import CASES
from static.tools import logits, opened

FAMILIES = ["gqa", "qwen", "qwen3", "moe", "qwen3_moe", "window"]
SCHEMES = ["none", "wint8", "wint4", "fp8", "a8w8", "a8w8c8"]
VARIANTS = ["wint4-g128", "wint4-channel", "wint4-zp", "wint4-g128-zp", "wint4-channel-zp"]
VARIANTS += ["wint8-h8", "wint4-h8"]
FOREIGN = sorted((Path(__file__).parents[1] / "goldens" / "foreign").iterdir())
REFERENCE = [("gqa", "none", "int8"), ("gqa", "wint4", "auto"), ("moe", "fp8", "auto")]
REFERENCE += [("qwen", "a8w8c8", "auto"), ("window", "none", "auto"), ("odd", "fp8", "auto")]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def assert_equal(checkpoint, export, name, quant, kv_cache_dtype):
    settings = {"quant": quant, "dtype": "float32", "kv_cache_dtype": kv_cache_dtype}
    dynamic = opened(checkpoint(name), **settings)
    tokens = tiny.prompt(CASES[name])
    expected = logits(dynamic, tokens, kv_cache_dtype)
    got = logits(opened(export(name, **settings)), tokens, kv_cache_dtype)
    assert np.array_equal(got.argmax(-1), expected.argmax(-1))
    return np.abs(got - expected).max()


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("quant", SCHEMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_every_scheme(checkpoint, export, name, quant, kv_cache_dtype):
    assert assert_equal(checkpoint, export, name, quant, kv_cache_dtype) == 0


@pytest.mark.parametrize("quant", VARIANTS)
def test_variants_of_schemes(checkpoint, export, quant):
    """Larger groups, zero points, and the head in int8 beside an embedding of the same weights."""
    assert assert_equal(checkpoint, export, "wide", quant, "auto") == 0


@pytest.mark.parametrize("folder", FOREIGN, ids=lambda path: path.name)
def test_quantised_checkpoints_of_others(folder, tmp_path):
    """Whose layers scale, shift and reorder inputs and add zero points. They have no tokenizer, so
    the program alone is saved.
    """
    loaded = opened(folder, dtype="float32")
    spec = cache_layout(loaded.hooks, loaded.config, loaded.plan, 16)
    save(loaded.model, spec, tmp_path)
    program = replace(loaded, model=StaticModel(tmp_path, loaded.run))
    tokens, chunks = [7, 3, 40, 11, 60, 22, 5, 33], [5, 1, 2]
    expected = step_logits(loaded, tokens, chunks)
    assert np.array_equal(step_logits(program, tokens, chunks), expected)


@pytest.mark.parametrize(("name", "quant", "kv_cache_dtype"), REFERENCE)
def test_reference_operators(checkpoint, export, monkeypatch, name, quant, kv_cache_dtype):
    """In plain Paddle operators, which add in another order for another number of rows."""
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    assert assert_equal(checkpoint, export, name, quant, kv_cache_dtype) < 1e-5


def test_static_scales_of_the_cache(checkpoint, tmp_path, rng):
    loaded = opened(checkpoint("gqa"), dtype="float32", kv_cache_dtype="int8")
    spec = cache_layout(loaded.hooks, loaded.config, loaded.plan, 16, "int8")
    scales = rng.uniform(0.01, 0.04, (spec.num_layers, 2, spec.num_kv_heads)).astype(np.float32)
    spec = from_json(CacheSpec, to_json(replace(spec, scales=scales)), "cache")
    save(loaded.model, spec, tmp_path)
    program = replace(loaded, model=StaticModel(tmp_path, loaded.run), cache=spec)
    tokens = tiny.prompt(tiny.CASES["gqa"])
    expected = logits(replace(loaded, cache=spec), tokens)
    assert np.array_equal(logits(program, tokens), expected)


def test_reference_operators_cannot_have_e4m3_caches(export, monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    with pytest.raises(Unsupported, match="fp8") as caught:
        export("gqa", kv_cache_dtype="fp8")
    assert "int8" in caught.value.remedy


def answers(folder, **options):
    """Texts with logprobs, greedy and sampled, in chunks and with several at a time; one in the
    pieces it is streamed in.
    """
    prompts = [f"prompt number {i} " + "abc " * i for i in range(5)]
    sampled = SamplingParams(temperature=1.3, top_k=9, seed=4, max_tokens=9, logprobs=2, n=2)
    options = {"kv_cache_memory": 8 << 20, "max_batch_tokens": 7} | options
    with LLM(str(folder), **options) as llm:
        outputs = llm.generate(prompts, [GREEDY, sampled, GREEDY, sampled, GREEDY])
        streamed = [delta.text for delta in llm.stream(prompts[1], GREEDY)]
        return [output.completions for output in outputs], streamed


def test_a_step_leaves_the_threads_as_they_were(export):
    """Paddle's predictor sets them to one, and steps that are replayed after it had only that."""
    with open("/proc/self/maps") as maps:
        (path,) = {line.split()[-1] for line in maps if "libiomp5" in line}
    threads = ctypes.CDLL(path).omp_get_max_threads
    answers(export("gqa"), threads=3)
    left = threads()
    import_paddle()  # as for the other tests
    assert left == 3


@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_the_engine_above_is_the_same(checkpoint, export, quant):
    """Also with a recorded program, as decoding steps of one size come again."""
    folder = export("gqa", quant=quant)
    assert answers(folder) == answers(checkpoint("gqa"), quant=quant)
