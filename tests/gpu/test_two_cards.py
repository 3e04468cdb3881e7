"""Two models in one process by turns, on one card and on two; and two cards at the same time."""

import json
import subprocess
import sys

import numpy as np
import pytest

from goldens import tiny
from gpu.test_steps import WIDE
from qinfer.core.hardware.nvidia import cards

NEEDS_TWO = pytest.mark.skipif(len(cards()) < 2, reason="needs two NVIDIA cards")

CODE = """
import json, sys
from qinfer import LLM, SamplingParams
params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
with LLM(sys.argv[1], device=sys.argv[2], dtype="bfloat16", kv_cache_memory=16 << 20) as llm:
    said = llm.generate(json.loads(sys.argv[3]), params)
print(json.dumps([output.completions[0].token_ids for output in said]))
"""


@pytest.fixture
def folder(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model", WIDE, dtype="bfloat16")


TEXTS = ["one card", "another card " * 9, "a third prompt that is rather long " * 12]


def start(folder, device):
    command = [sys.executable, "-c", CODE, str(folder), device, json.dumps(TEXTS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@NEEDS_TWO
def test_two_processes_at_the_same_time(folder):
    running = [start(folder, device) for device in ("gpu:0", "gpu:1")]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in running)
    assert first == second
    assert all(len(tokens) == 12 for tokens in first)


@pytest.mark.parametrize("indices", [(0, 0), pytest.param((0, 1), marks=NEEDS_TWO)], ids=str)
def test_one_process_by_turns(folder, indices):
    """All kernels are prepared on both cards, and each model's work stays on its own, on one card
    too: graphs share memory that none of them keeps.
    """
    from qinfer import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    options = {"dtype": "bfloat16", "kv_cache_memory": 16 << 20}
    found = []
    with (
        LLM(str(folder), device=f"gpu:{indices[0]}", **options) as first,
        LLM(str(folder), device=f"gpu:{indices[1]}", **options) as second,
    ):
        assert tuple(llm.loaded.device.index for llm in (first, second)) == indices
        for llm in (first, second, first, second):
            said = llm.generate(TEXTS, params)
            found.append([output.completions[0].token_ids for output in said])
    assert found == [found[0]] * 4


@NEEDS_TWO
def test_a_product_of_many_rows_on_the_second_card(rng):
    import paddle

    from gpu.tools import back, card, error, rounded
    from qinfer.cuda_ops import ops

    x, weight = (rounded(rng.normal(size=(n, 256)), "bfloat16") for n in (4000, 8448))
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    for device in ("nv:0", "nv:1"):
        paddle.set_device(device)
        got = back(ops.linear(card(x), card(weight), None, "bfloat16", 8448))
        assert error(got, expected) < 4e-3
