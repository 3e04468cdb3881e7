"""Logits and greedy tokens of every family against those of transformers and PaddleNLP.

The answers are stored (goldens/make_goldens.py says how they were made); the weights are
generated, written as checkpoints and read back through the same road as a real model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from goldens import tiny
from goldens.steps import Stepper, step_logits

DATA = Path(__file__).parent / "goldens" / "data"
TOLERANCE = 2e-4
"""Float32 rounding in another order of summation makes about 2e-5 (measured by rounding the
weights by one unit); a wrong epsilon, the smallest mistake tried, makes 1e-3."""

CASES = list(tiny.CASES)
BFLOAT16 = [name for name, case in tiny.CASES.items() if case.bfloat16]


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as stored:
        return dict(stored)


def sequence(stored: dict[str, np.ndarray]) -> list[int]:
    return [*stored["prompt"].tolist(), *stored["tokens"].tolist()]


def open_folder(folder: Path, dtype: str = "float32"):
    from qinfer.core.progress import NoProgress
    from qinfer.core.session import load_model, select
    from qinfer.core.types import RunConfig

    run = RunConfig(model=str(folder), quant="none", dtype=dtype)
    return load_model(run, select(run), folder, NoProgress())


def logits_of(opened, stored, chunks=None):
    """Of the stored prompt and answer together, in one piece or in several."""
    tokens = sequence(stored)
    return step_logits(opened, tokens, chunks or [len(tokens)], len(stored["prompt"]))


def assert_logits(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=CASES)
def opened_case(request, tmp_path_factory):
    """Every case, opened once for the tests of this module."""
    case = tiny.CASES[request.param]
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("golden") / case.name, case)
    return open_folder(folder), golden(case.name), folder


def chunks_of(size: int, total: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


@pytest.mark.parametrize("name", CASES)
def test_stored_answers_are_of_these_configurations(name):
    stored = golden(name)
    assert json.loads(str(stored["config"])) == tiny.CASES[name].config
    assert stored["prompt"].tolist() == tiny.prompt(tiny.CASES[name])
    assert len(stored["tokens"]) == 24
    greedy = stored["logits"][len(stored["prompt"]) - 1 : -1].argmax(-1)
    assert greedy.tolist() == stored["tokens"].tolist()


@pytest.mark.parametrize("size", [1, 7, 16, 10_000], ids=["decode", "chunk7", "chunk16", "prefill"])
def test_logits_of_every_position(opened_case, size):
    opened, stored, _ = opened_case
    got = logits_of(opened, stored, chunks_of(size, len(sequence(stored))))
    assert_logits(got, stored["logits"])


def test_prefill_then_decode(opened_case):
    opened, stored, _ = opened_case
    got = logits_of(opened, stored, [len(stored["prompt"]), *[1] * len(stored["tokens"])])
    assert_logits(got, stored["logits"])


def test_ragged_batch_of_prefill_and_decode(opened_case):
    """Three copies at different stages in one step: a prefill beside decodes."""
    opened, stored, _ = opened_case
    tokens = sequence(stored)
    stepper = Stepper(opened.model, opened.config, 3, len(tokens), len(stored["prompt"]))
    rows: list[list[np.ndarray]] = [[], [], []]
    plan = [(5, 0, 0), (1, 11, 0), (1, 1, 2), (0, 20, 1), (2, 0, len(tokens) - 3)]
    done = [0, 0, 0]
    for sizes in plan:
        new = [tokens[at : at + size] for at, size in zip(done, sizes, strict=True)]
        for i, part in enumerate(stepper.step(new)):
            rows[i].append(part)
            done[i] += sizes[i]
    for got, end in zip(rows, done, strict=True):
        assert_logits(np.concatenate(got), stored["logits"][:end])


@pytest.mark.parametrize("max_batch_tokens", [512, 16], ids=["whole", "chunked"])
def test_greedy_continuation(opened_case, max_batch_tokens):
    """Through the engine: alone, then three at once."""
    from qinfer.core.llm import LLM
    from qinfer.core.params import SamplingParams

    _, stored, folder = opened_case
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True).with_defaults({})
    options = {"dtype": "float32", "max_batch_tokens": max_batch_tokens}
    with LLM(model=str(folder), kv_cache_memory=16 << 20, **options) as llm:
        for copies in (1, 3):
            answers = {llm.engine.add(stored["prompt"].tolist(), params): [] for _ in range(copies)}
            while llm.engine.has_work:
                for request, delta in llm.engine.step():
                    answers[request].extend(delta.token_ids)
            assert list(answers.values()) == [stored["tokens"].tolist()] * copies


LAYOUTS = {
    "shards": {"shards": 4},
    "config of transformers 5": {"config_style": 5},
    "paddle": {"layout": "paddle"},
    "paddle, shards": {"layout": "paddle", "shards": 2},
}
TIED = [name for name, case in tiny.CASES.items() if case.tied]


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("name", CASES)
def test_every_layout_gives_the_same_logits(name, options, tmp_path):
    stored = golden(name)
    opened = open_folder(tiny.write_checkpoint(tmp_path, tiny.CASES[name], **options))
    assert_logits(logits_of(opened, stored), stored["logits"])


@pytest.mark.parametrize("layout", ["hf", "paddle"])
@pytest.mark.parametrize("name", TIED)
def test_tied_head_stored_as_well(name, layout, tmp_path):
    """Some writers leave the head of a tied model in the file: it is the embedding again."""
    stored = golden(name)
    folder = tiny.write_checkpoint(tmp_path, tiny.CASES[name], layout=layout, store_tied_head=True)
    assert_logits(logits_of(open_folder(folder), stored), stored["logits"])


@pytest.mark.parametrize("layout", ["hf", "paddle"])
@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_checkpoint(name, layout, tmp_path):
    """Against the reference run in float32 with weights rounded to bfloat16."""
    stored = golden(f"{name}-bfloat16")
    case = tiny.CASES[name]
    folder = tiny.write_checkpoint(tmp_path, case, dtype="bfloat16", layout=layout)
    opened = open_folder(folder, dtype="auto")
    assert_logits(logits_of(opened, stored), stored["logits"])


@pytest.mark.parametrize("name", BFLOAT16)
def test_float32_checkpoint_rounded_to_bfloat16(name, tmp_path):
    """``dtype="bfloat16"`` rounds the parameters, whatever the checkpoint holds."""
    stored = golden(f"{name}-bfloat16")
    opened = open_folder(tiny.write_checkpoint(tmp_path, tiny.CASES[name]), dtype="bfloat16")
    assert_logits(logits_of(opened, stored), stored["logits"])


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_transformers_still_says_so(name, dtype):
    """Opt-in by having torch and transformers installed: compute the answers again."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from goldens import reference

    if tiny.CASES[name].family == "qwen":
        pytest.skip("transformers has no first Qwen")
    if dtype == "bfloat16" and name not in BFLOAT16:
        pytest.skip("has no bfloat16 golden")
    stored = golden(name if dtype == "float32" else f"{name}-{dtype}")
    answer = reference.compute(tiny.CASES[name], dtype)
    assert answer.tokens.tolist() == stored["tokens"].tolist()
    np.testing.assert_allclose(answer.logits, stored["logits"], rtol=0, atol=TOLERANCE / 2)
