"""Models of real shapes in bfloat16 beside transformers on the same card.

Transformers in float32 is taken as exact. Its own answers in bfloat16 say how far rounding may
lead; this project's may be no further off.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from goldens import tiny
from goldens.steps import step_logits
from gpu.real_shapes import CASES, NEW_TOKENS
from gpu.test_models import answers

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module", params=CASES)
def answered(request, tmp_path_factory):
    """A case, its checkpoint, and what transformers says of it."""
    pytest.importorskip("transformers")
    case, place = CASES[request.param], tmp_path_factory.mktemp("real")
    folder = tiny.write_checkpoint(place / "model", case, dtype="bfloat16")
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); "
    code += "import runpy; runpy.run_module('gpu.transformers_answers', run_name='__main__')"
    command = [sys.executable, "-c", code, case.name, str(place / "answers.npz")]
    subprocess.run(command, check=True)
    with np.load(place / "answers.npz") as stored:
        return case, folder, dict(stored)


def off(got, exact):
    """Of each row, of the logits' norm."""
    assert np.isfinite(got).all()
    return np.linalg.norm(got - exact, axis=1) / np.sqrt((exact**2).sum(axis=1).mean())


@pytest.mark.parametrize("size", [1, 50, 1000], ids=["decode", "chunks", "whole"])
def test_logits_are_as_near_as_transformers_own(answered, size, record_property):
    from qinfer.core.progress import NoProgress
    from qinfer.core.session import load_model, select
    from qinfer.core.types import RunConfig

    case, folder, said = answered
    run = RunConfig(model=str(folder), dtype="bfloat16", device="gpu")
    tokens = [*tiny.prompt(case), *said["tokens"].tolist()]
    chunks = [min(size, len(tokens) - start) for start in range(0, len(tokens), size)]
    model = load_model(run, select(run), folder, NoProgress())
    own, theirs = (
        off(logits, said["exact"])
        for logits in (step_logits(model, tokens, chunks), said["rounded"])
    )
    for name, rows in (("own", own), ("theirs", theirs)):
        record_property(name, f"median {np.median(rows):.2e}, most {rows.max():.2e}")
    assert np.median(own) < 1.2 * np.median(theirs)
    assert np.quantile(own, 0.9) < 1.5 * np.quantile(theirs, 0.9)


def test_64_greedy_tokens(answered, record_property):
    from qinfer import LLM, SamplingParams

    case, folder, said = answered
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with LLM(str(folder), device="gpu", dtype="bfloat16", kv_cache_memory=64 << 20) as llm:
        (got,) = answers(llm, tiny.prompt(case), params.with_defaults({}), 1)
    expected = said["tokens"].tolist()
    differ = [at for at in range(NEW_TOKENS) if got[at] != expected[at]]
    rounding = 2 * np.abs(said["rounded"] - said["exact"]).max(axis=1)
    record_property("first_difference", str(differ[:1]))
    if differ:
        row = case.prompt_length - 1 + differ[0]
        exact = said["exact"][row]
        margin = exact.max() - exact[got[differ[0]]]
        record_property("margin", f"{margin:.4f} of {rounding[row]:.4f}")
        assert margin <= rounding[row]
