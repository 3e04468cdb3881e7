"""Exported programs on a card: what the model itself says, bit for bit, eagerly and in CUDA graphs.

The models' heads have 64 numbers, as prompts over quantised caches and windows need.
"""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goldens import tiny
from qinfer import LLM, SamplingParams
from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.export.make import export_model
from qinfer.core.loading import cache_layout
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops.build_cuda import DEVICE, plan_cuda
from qinfer.plugins.backends.program import StaticModel, save
from static.test_faults import edit

FAMILIES = ["gqa", "qwen", "qwen3", "moe", "qwen3_moe", "window", "yarn"]
SCHEMES = ["none", "wint8", "wint4", "a8w8", "a8w8c8", "fp8"]
FOREIGN = sorted((Path(__file__).parents[1] / "goldens" / "foreign").iterdir())
FOREIGN = [path for path in FOREIGN if path.name != "ct-fp8-block"]
"""But the one in blocks, which are smaller than those a card multiplies."""
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=3)
SAMPLED = replace(GREEDY, temperature=1.2, top_k=20, seed=3)
CACHE = {"kv_cache_memory": 16 << 20}


def prompts(case):
    """Of lengths whose steps share a graph the second time, and one that is decoded beside."""
    rng = np.random.default_rng(case.seed)
    return [rng.integers(0, case.vocab_size, size).tolist() for size in (70, 100, 9)]


def answers(llm, case):
    """Tokens and logprobs of prompts one by one and together, which are three sizes of steps."""
    told = []
    for group in ([prompts(case)[0]], prompts(case), [prompts(case)[1]]):
        found = {llm.engine.add(one, GREEDY.with_defaults({})): [] for one in group}
        found[llm.engine.add(group[0], SAMPLED.with_defaults({}))] = []
        while llm.engine.has_work:
            for request, delta in llm.engine.step():
                found[request].append((delta.token_ids, delta.logprobs))
        told.append(list(found.values()))
    return told


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    case = replace(tiny.CASES[request.param], width=64)
    folder = tmp_path_factory.mktemp("checkpoint") / case.name
    return case, tiny.write_checkpoint(folder, case, dtype="bfloat16")


def export(folder, output, **settings):
    run = RunConfig(model=str(folder), backend="static", device="gpu", **settings)
    export_model(run, output, NoProgress())
    return output


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("quant", SCHEMES)
def test_every_family_in_every_scheme(written, quant, kv_cache_dtype, tmp_path):
    case, folder = written
    settings = {"quant": quant, "kv_cache_dtype": kv_cache_dtype}
    with LLM(str(folder), device="gpu", **settings, **CACHE) as llm:
        expected = answers(llm, case)
        sizes = list(llm.engine.runner.graphs)
    with LLM(str(export(folder, tmp_path / "made", **settings)), **CACHE) as llm:
        assert answers(llm, case) == expected
        assert list(llm.engine.runner.graphs) == sizes
    assert any(size.is_decode for size in sizes)
    assert any(not size.is_decode for size in sizes)


@pytest.mark.parametrize("folder", FOREIGN, ids=lambda path: path.name)
def test_quantised_checkpoints_of_others(folder, tmp_path):
    from goldens.steps import step_logits

    run = RunConfig(model=str(folder), device="gpu", dtype="float16")
    loaded = load_model(run, select(run), folder, NoProgress())
    save(loaded.model, cache_layout(loaded.hooks, loaded.config, loaded.plan, 16), tmp_path)
    program = replace(loaded, model=StaticModel(tmp_path, loaded.run))
    tokens, chunks = [7, 3, 40, 11, 60, 22, 5, 33], [5, 1, 2]
    expected = step_logits(loaded, tokens, chunks)
    assert np.array_equal(step_logits(program, tokens, chunks), expected)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    case, folder = tiny.CASES["gqa"], tmp_path_factory.mktemp("gpu")
    tiny.write_checkpoint(folder / "checkpoint", case, dtype="bfloat16")
    return export(folder / "checkpoint", folder / "made", quant="wint4", max_model_len=96)


def test_a_step_copies_nothing_to_the_computer(exported):
    plugin = ctypes.CDLL(str(plan_cuda().device / DEVICE))
    plugin.qinfer_nv_copies_to_host.restype = ctypes.c_size_t
    greedy = replace(GREEDY, logprobs=None).with_defaults({})
    with LLM(str(exported), **CACHE) as llm:
        copies = []
        llm.engine.add([1, 2, 3], greedy)
        while llm.engine.has_work:
            before = plugin.qinfer_nv_copies_to_host()
            llm.engine.step()
            copies.append(plugin.qinfer_nv_copies_to_host() - before)
    assert copies[0] <= 1  # the prompt's step brings its tokens over
    assert sum(copies[1:]) == 0  # a graph's come past Paddle


def said(*model):
    words = ["run", *model, "--device", "gpu", "--temperature", "0", "--max-tokens", "10"]
    command = [sys.executable, "-c", "from qinfer.core.cli import main; main()", *map(str, words)]
    done = subprocess.run(
        [*command, "--ignore-eos", "--kv-cache-memory", "16MiB", "Hello"],
        env={name: value for name, value in os.environ.items() if name != "CUSTOM_DEVICE_ROOT"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_in_a_process_of_its_own(exported):
    """Whose device plugin is found by itself."""
    checkpoint = exported.parent / "checkpoint"
    static, dynamic = said("--model", exported), said("--model", checkpoint, "--quant", "wint4")
    assert static == dynamic != b""


def test_what_is_refused(exported, tmp_path):
    assert json.loads((exported / "qinfer.json").read_text())["device"] == "gpu"
    with pytest.raises(UsageError, match=r"--device cpu contradicts .* for the gpu"):
        LLM(str(exported), device="cpu")
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit(folder, lambda manifest: manifest["needs"]["facts"].update(sources="x"))
    with pytest.raises(Unsupported, match="exported for other operators: sources x"):
        LLM(str(folder))
