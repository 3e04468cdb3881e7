"""Whole models of every family in every scheme: the card's logits beside the processor's.

Both hold the same numbers, quantised by the same code, so the difference is that of computing in
16 bits. The processor's own answers are held against transformers' in tests/test_families.py.
"""

from dataclasses import replace

import numpy as np
import pytest

from goldens import tiny
from goldens.steps import Stepper, step_logits
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig

FAMILIES = ["gqa", "moe", "moe_norm", "qwen3", "qwen3_moe", "window", "qwen_long", "yarn"]
SCHEMES = ["none", "wint8", "wint4", "a8w8", "fp8"]
TOLERANCE = {"none": 6e-3, "wint8": 6e-3, "wint4": 1e-2, "a8w8": 0.35, "fp8": 0.35}
"""Rounding inputs to eight bits turns the last bit of a 16-bit number into a whole step here and
there, and the tiny models' rows are short."""


def error(got, expected):
    """What half of the rows stay below, of the logits' norm. The last bit of a router's logit can
    send a token to another expert, which those after it see.
    """
    assert np.isfinite(got).all()
    rows = np.linalg.norm(got - expected, axis=1) / np.sqrt((expected**2).sum(axis=1).mean())
    assert np.quantile(rows, 0.9) < 0.5
    return np.median(rows)


def wide(case):
    """The card's attention knows windows where heads have 64 or 128 numbers."""
    return replace(case, width=64) if "window" in case.name else case


def opened(folder, quant, device):
    run = RunConfig(model=str(folder), quant=quant, dtype="float16", device=device)
    return load_model(run, select(run), folder, NoProgress())


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    case = wide(tiny.CASES[request.param])
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("family") / case.name, case)
    rng = np.random.default_rng(case.seed)
    return case, folder, [*tiny.prompt(case), *rng.integers(0, case.vocab_size, 24).tolist()]


@pytest.mark.parametrize("quant", SCHEMES)
def test_a_family_in_a_scheme(written, quant):
    case, folder, tokens = written
    on_processor = opened(folder, quant, "cpu")
    expected = step_logits(on_processor, tokens, [len(tokens)], case.prompt_length)
    model = opened(folder, quant, "gpu")
    whole = step_logits(model, tokens, [len(tokens)], case.prompt_length)
    assert error(whole, expected) < TOLERANCE[quant]
    by_token = step_logits(model, tokens, [1] * len(tokens), case.prompt_length)
    assert error(by_token, expected) < TOLERANCE[quant]
    batch = Stepper(model.model, model.config, 3, len(tokens), case.prompt_length)
    first = batch.step([tokens[:9], tokens, tokens[:1]])
    second = batch.step([tokens[9:], [], tokens[1:20]])
    for got in (np.concatenate([first[0], second[0]]), first[1]):
        assert error(got, expected) < TOLERANCE[quant]
    few = np.concatenate([first[2], second[2]])
    assert error(few, expected[:20]) < 2 * TOLERANCE[quant]
