"""wint4 in every group size, with and without zero points, chosen by name."""

from __future__ import annotations

import numpy as np
import pytest

from goldens import tiny
from goldens.steps import step_logits
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops import table

GROUPS = {
    "wint4": (64, False),
    "wint4-g128": (128, False),
    "wint4-channel": (0, False),
    "wint4-zp": (64, True),
    "wint4-g128-zp": (128, True),
    "wint4-channel-zp": (0, True),
}
PROMPT = [7, 3, 40, 11, 60, 22, 5, 33, 18, 2, 49, 27]


@pytest.fixture(autouse=True)
def after():
    yield
    table.use(table.REFERENCE)


def dequantised(weight, group, has_zero):
    """What 4 bits make of a weight [out, in], by the definition in float64."""
    groups = weight.astype(np.float64).reshape(len(weight), -1, group or weight.shape[1])
    if has_zero:
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        scale = ((high - low) / 15)[:, :, None]
        zero = np.rint(-8 - low[:, :, None] / scale)
        codes = np.clip(np.rint(groups / scale) + zero, -8, 7) - zero
    else:
        scale = np.abs(groups).max(2, keepdims=True) / 7
        codes = np.sign(groups) * np.floor(np.abs(groups / scale) + 0.5)
    return (codes * scale).reshape(weight.shape).astype(np.float32)


def logits_of(folder, quant):
    run = RunConfig(model=str(folder), quant=quant, dtype="float32")
    opened = load_model(run, select(run), folder, NoProgress())
    return step_logits(opened, PROMPT, [len(PROMPT)]), opened.stats


@pytest.mark.parametrize("version", ["reference", "native"])
@pytest.mark.parametrize("case", [tiny.WIDE, tiny.WIDE_EXPERTS], ids=lambda case: case.name)
@pytest.mark.parametrize("quant", GROUPS)
def test_logits_are_those_of_the_dequantised_weights(tmp_path, monkeypatch, quant, case, version):
    monkeypatch.setenv("QINFER_OPERATORS", "reference" if version == "reference" else "")
    tensors = tiny.weights(case)
    plain = tiny.write_checkpoint(tmp_path / "plain", case)
    held = {
        name: dequantised(tensor, *GROUPS[quant]) if name.endswith("_proj.weight") else tensor
        for name, tensor in tensors.items()
    }
    rounded = tiny.write_checkpoint(tmp_path / "rounded", case, tensors=held)
    got, stats = logits_of(plain, quant)
    expected, _ = logits_of(rounded, "none")
    assert np.abs(got - expected).max() < 0.05  # a tie of a zero point's, in float32
    assert np.std(logits_of(plain, "none")[0] - expected) > 0.1
    assert set(stats.layers_by_scheme) == {quant, "none"}
    kept = {name.split(".")[-1] for name in stats.skipped}
    assert kept <= {"lm_head", "router", "shared_gate"}


def test_layers_whose_inputs_make_no_groups_are_named(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "m", tiny.CASES["gqa"])  # 64 and 160 inputs
    _, stats = logits_of(folder, "wint4-g128")
    assert stats.skipped["layers.0.down"] == "160 inputs are no multiple of 128"
    assert stats.layers_by_scheme == {"none": 13}
    _, stats = logits_of(folder, "wint4-channel")
    assert stats.layers_by_scheme == {"wint4-channel": 12, "none": 1}
