"""What parameters take in memory with the native operators: their own size, no more."""

from __future__ import annotations

import pytest

from goldens import tiny
from qinfer.core.errors import Unsupported
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops import table

BITS = {"none": 16, "wint8": 8, "a8w8": 8, "a8w8c8": 8, "fp8": 8}
GROUPS = {
    "wint4": (64, 1),
    "wint4-g128": (128, 1),
    "wint4-channel": (0, 1),
    "wint4-zp": (64, 2),
    "wint4-g128-zp": (128, 2),
    "wint4-channel-zp": (0, 2),
}
"""Inputs that share a scale, 0 for all, and the float32 numbers that a group has: its scale, and
what its zero point stands for.
"""
HEAD = "-h8"
"""What the names end in of schemes whose vocabulary head is int8."""


@pytest.fixture(autouse=True)
def native(monkeypatch):
    from qinfer.cuda_ops.build import build, plan_build

    monkeypatch.delenv("QINFER_OPERATORS", raising=False)
    try:
        build(plan_build())
    except Unsupported as error:
        pytest.skip(str(error))
    yield
    table.use(table.REFERENCE)


@pytest.fixture(scope="module", params=[tiny.WIDE, tiny.WIDE_EXPERTS], ids=lambda case: case.name)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "model"
    return tiny.write_checkpoint(path, request.param, dtype="bfloat16")


def arithmetic_size(spec, quant, kept):
    """Bytes of one linear: its codes, and float32 scales and biases."""
    own = quant.removesuffix(HEAD)
    bits = 8 if spec.name == "lm_head" else BITS.get(own, 4)
    bits = 16 if spec.name in kept or own == "none" else bits
    scales = {16: 0, 8: spec.rows}.get(bits)
    if scales is None:
        size, numbers = GROUPS[own]
        scales = numbers * spec.rows * spec.in_features // (size or spec.in_features)
    return spec.rows * spec.in_features * bits // 8 + 4 * (scales + spec.bias * spec.rows)


@pytest.mark.parametrize("quant", [*BITS, *GROUPS, f"wint8{HEAD}", f"wint4{HEAD}"])
def test_parameters_take_their_arithmetic_size(folder, quant):
    run = RunConfig(model=str(folder), quant=quant)
    opened = load_model(run, select(run), folder, NoProgress())
    config, kept = opened.config, opened.stats.skipped
    assert ("lm_head" in kept) == (quant != "none" and not quant.endswith(HEAD))
    specs = opened.hooks.linear_layers(config)
    assert sum(opened.stats.layers_by_scheme.values()) == len(specs)
    embedding = 2 * config.vocab_size * config.hidden_size
    norms = 4 * config.hidden_size * (2 * config.num_layers + 1)
    expected = embedding + norms + sum(arithmetic_size(spec, quant, kept) for spec in specs)
    assert expected <= opened.stats.parameter_bytes <= 1.03 * expected
