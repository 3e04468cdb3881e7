"""What parameters take in memory with the native operators: their own size, no more."""

from __future__ import annotations

import pytest

from goldens import tiny
from qinfer.core.errors import Unsupported
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops import table

WIDE = tiny.Case(
    name="wide", hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, vocab_size=320
)
WIDE_EXPERTS = tiny.Case(
    name="wide_experts",
    family="qwen2_moe",
    hidden_size=256,
    num_layers=2,
    vocab_size=320,
    more=tiny.CASES["moe"].more
    | {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
)
BITS = {"none": 16, "wint8": 8, "wint4": 4, "a8w8": 8, "a8w8c8": 8, "fp8": 8}
GROUP = 64


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


@pytest.fixture(scope="module", params=[WIDE, WIDE_EXPERTS], ids=lambda case: case.name)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "model"
    return tiny.write_checkpoint(path, request.param, dtype="bfloat16")


def arithmetic_size(spec, quant, kept):
    """Bytes of one linear: its codes, and float32 scales and biases."""
    bits = 16 if spec.name in kept else BITS[quant]
    scales = {16: 0, 8: spec.rows, 4: spec.rows * spec.in_features // GROUP}[bits]
    return spec.rows * spec.in_features * bits // 8 + 4 * (scales + spec.bias * spec.rows)


@pytest.mark.parametrize("quant", BITS)
def test_parameters_take_their_arithmetic_size(folder, quant):
    run = RunConfig(model=str(folder), quant=quant)
    opened = load_model(run, select(run), folder, NoProgress())
    config, kept = opened.config, opened.stats.skipped
    assert set(kept) >= ({"lm_head"} if quant != "none" else set())
    specs = opened.hooks.linear_layers(config)
    assert sum(opened.stats.layers_by_scheme.values()) == len(specs)
    embedding = 2 * config.vocab_size * config.hidden_size
    norms = 4 * config.hidden_size * (2 * config.num_layers + 1)
    expected = embedding + norms + sum(arithmetic_size(spec, quant, kept) for spec in specs)
    assert expected <= opened.stats.parameter_bytes <= 1.03 * expected
