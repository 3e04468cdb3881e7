"""Whole models on a card: against transformers' stored answers, and through the engine."""

import ctypes

import numpy as np
import pytest

from goldens import tiny
from goldens.steps import step_logits
from gpu.tools import error
from test_goldens import chunks_of, golden, sequence

CASES = ["gqa", "gqa_tied"]
TOLERANCE = {"float16": 4e-3, "bfloat16": 4e-2}
"""Of the logits' norm; both read bfloat16 weights, which float16 holds exactly."""


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    folder = tiny.write_checkpoint(tmp_path, tiny.CASES[request.param], dtype="bfloat16")
    return folder, golden(f"{request.param}-bfloat16")


def opened(folder, dtype):
    from qinfer.core.progress import NoProgress
    from qinfer.core.session import load_model, select
    from qinfer.core.types import RunConfig

    run = RunConfig(model=str(folder), plugin="qwen2", dtype=dtype, device="gpu")
    return load_model(run, select(run), folder, NoProgress())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 7, 10_000], ids=["decode", "chunk7", "prefill"])
def test_logits(case, dtype, size):
    folder, stored = case
    tokens = sequence(stored)
    got = step_logits(opened(folder, dtype), tokens, chunks_of(size, len(tokens)))
    assert error(got, stored["logits"]) < TOLERANCE[dtype]


def answers(llm, prompt, params, copies):
    found = {llm.engine.add(prompt, params): [] for _ in range(copies)}
    while llm.engine.has_work:
        for request, delta in llm.engine.step():
            found[request].extend(delta.token_ids)
    return list(found.values())


def open_llm(folder, **options):
    from qinfer.core.llm import LLM

    return LLM(
        model=str(folder), device="gpu", dtype="float16", kv_cache_memory=16 << 20, **options
    )


@pytest.mark.parametrize("chunk", [512, 16], ids=["whole", "chunked"])
def test_greedy_continuation(case, chunk):
    from qinfer.core.params import SamplingParams

    folder, stored = case
    expected, prompt = stored["tokens"].tolist(), stored["prompt"].tolist()
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True).with_defaults({})
    with open_llm(folder, max_batch_tokens=chunk) as llm:
        for copies in (1, 3, 9):
            for got in answers(llm, prompt, params, copies):
                if got != expected:
                    at = next(i for i in range(24) if got[i] != expected[i])
                    row = stored["logits"][len(prompt) - 1 + at]
                    assert row.max() - row[got[at]] < TOLERANCE["float16"] * np.abs(row).max()


@pytest.mark.parametrize("penalty", [1.0, 1.2], ids=["drawn in the graph", "after it"])
def test_a_sampled_text_is_the_same_alone_and_in_company(case, penalty):
    from qinfer.core.params import SamplingParams

    folder, stored = case
    prompt = stored["prompt"].tolist()
    params = SamplingParams(
        temperature=0.9, top_p=0.9, top_k=40, repetition_penalty=penalty, seed=5, max_tokens=20
    ).with_defaults({})
    with open_llm(folder) as llm:
        (alone,) = answers(llm, prompt, params, 1)
        assert len(set(alone)) > 3
        assert answers(llm, prompt, params, 4) == [alone] * 4


def test_drawing_in_the_graph_is_drawing_after_it(case):
    """A penalty of nothing, by a bias that leaves everything as it is, takes the other road."""
    from qinfer.core.params import SamplingParams

    folder, stored = case
    prompt = stored["prompt"].tolist()
    drawn = {"temperature": 0.8, "top_k": 20, "seed": 3, "max_tokens": 16, "ignore_eos": True}
    with open_llm(folder) as llm:
        said = [
            answers(llm, prompt, SamplingParams(**drawn, **more).with_defaults({}), 3)
            for more in ({}, {"logprobs": 2}, {"logit_bias": {prompt[0]: 1e-30}})
        ]
    assert said[1] == said[0]
    assert said[2] == said[0]


def test_logits_for_evaluation(case):
    from qinfer.core.measure.evaluate import prompt_logits
    from qinfer.core.progress import NoProgress
    from qinfer.core.session import open_engine, select
    from qinfer.core.types import RunConfig

    folder, stored = case
    run = RunConfig(
        model=str(folder), device="gpu", dtype="float16", kv_cache_memory=16 << 20, plugin="qwen2"
    )
    opened = open_engine(run, select(run), NoProgress())
    got = np.concatenate(list(prompt_logits(opened, sequence(stored))))
    assert error(got, stored["logits"]) < TOLERANCE["float16"]
    opened.engine.close()


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("gqa", "none"),
        ("gqa", "a8w8"),
        ("qwen3", "none"),
        ("moe", "none"),
        ("qwen3_moe", "fp8"),
        ("qwen3_moe", "wint4"),
    ],
)
def test_no_operator_of_a_step_runs_on_the_processor(name, quant, tmp_path, library):
    """What Paddle leaves to the processor is copied there, which the device plugin counts."""
    from qinfer.core.params import SamplingParams
    from qinfer.cuda_ops.build_cuda import DEVICE, plan_cuda

    plugin = ctypes.CDLL(str(plan_cuda().device / DEVICE))
    plugin.qinfer_nv_copies_to_host.restype = ctypes.c_size_t
    case = tiny.CASES[name]
    folder, prompt = tiny.write_checkpoint(tmp_path / "model", case), tiny.prompt(case)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True).with_defaults({})
    with open_llm(folder, quant=quant) as llm:
        answers(llm, prompt, params, 2)  # records the graph
        llm.engine.add(prompt[::-1], params)
        llm.engine.add(prompt[::-1], params)
        copies = []
        while llm.engine.has_work:
            before = plugin.qinfer_nv_copies_to_host()
            llm.engine.step()
            copies.append(plugin.qinfer_nv_copies_to_host() - before)
    assert copies[0] <= 1  # the prompt's step brings its tokens over
    assert sum(copies[1:]) == 0  # a graph's come past Paddle


@pytest.mark.parametrize("quant", ["wint8", "wint4", "fp8"])
def test_quantised_models_run(case, quant):
    from qinfer.core.params import SamplingParams

    folder, stored = case
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True).with_defaults({})
    with open_llm(folder, quant=quant) as llm:
        first, second = answers(llm, stored["prompt"].tolist(), params, 2)
    assert first == second
    assert len(first) == 8
