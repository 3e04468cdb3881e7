"""Every family in every scheme: pieces, batches and the distance to the float32 logits."""

import numpy as np
import pytest

from goldens import tiny
from goldens.steps import Stepper, step_logits
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig

FAMILIES = ["gqa", "qwen_long", "moe", "moe_norm", "qwen3", "qwen3_moe", "window", "yarn"]
SCHEMES = {"none": 1e-4, "wint8": 0.3, "wint4": 2.8, "a8w8": 0.6, "fp8": 1.6}
"""Root-mean-square difference to the golden allowed; the tiny models' logits have deviation 3, so
logits of another model would differ by 4.2."""


def distance(one, other):
    return np.sqrt(np.mean((one - other) ** 2))


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, tmp_path_factory):
    case = tiny.CASES[request.param]
    folder = tmp_path_factory.mktemp("family") / case.name
    with np.load(tiny.DATA / f"{case.name}.npz") as stored:
        return case, tiny.write_checkpoint(folder, case), stored["tokens"], stored["logits"]


@pytest.mark.parametrize("quant", SCHEMES)
def test_a_family_in_a_scheme(written, quant):
    case, folder, continuation, expected = written
    run = RunConfig(model=str(folder), quant=quant, dtype="float32")
    opened = load_model(run, select(run), folder, NoProgress())
    tokens = [*tiny.prompt(case), *continuation.tolist()]
    whole = step_logits(opened, tokens, [len(tokens)], case.prompt_length)
    assert distance(whole, expected) < SCHEMES[quant]
    # Paddle's products add in an order that depends on the shape, and a scheme that rounds
    # activations makes more of that.
    close = 1e-4 if quant == "none" else 2e-2
    by_token = step_logits(opened, tokens, [1] * len(tokens), case.prompt_length)
    assert distance(by_token, whole) < close
    batch = Stepper(opened.model, opened.config, 3, len(tokens), case.prompt_length)
    first = batch.step([tokens[:9], tokens, tokens[:1]])
    second = batch.step([tokens[9:], [], tokens[1:20]])
    assert distance(np.concatenate([first[0], second[0]]), whole) < close
    assert distance(first[1], whole) < close
    assert distance(np.concatenate([first[2], second[2]]), whole[:20]) < close


@pytest.mark.parametrize("quant", ["wint8", "wint4", "a8w8", "fp8"])
def test_router_and_shared_gate_keep_their_precision(tmp_path, quant):
    folder = tiny.write_checkpoint(tmp_path / "model", tiny.CASES["moe"])
    run = RunConfig(model=str(folder), quant=quant)
    opened = load_model(run, select(run), folder, NoProgress())
    left = {f"layers.{i}.{name}" for i in range(3) for name in ("router", "shared_gate")}
    assert left | {"lm_head"} <= set(opened.stats.skipped)
    schemes = {name: scheme.name for name, scheme in opened.plan.by_layer.items()}
    assert {schemes[name] for name in left} == {"none"}
    assert schemes["layers.0.experts.gate_up"] == quant
    assert schemes["layers.0.shared.gate_up"] == quant
