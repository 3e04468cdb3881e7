"""Experts: quantised for their own tokens, and computed with in formats that no operator has."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import paddle
import pytest

from goldens import tiny
from goldens.steps import step_logits
from qinfer.core.checkpoint.join import join
from qinfer.core.hardware.place import place
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.experts import FEWEST, Routed, quantise_experts
from qinfer.core.quantize.linear import Recipe, quantise_linear
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.session import load_model, select
from qinfer.core.text.corpus import EVALUATION, read_corpus
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import LinearSpec, RunConfig, Scheme
from qinfer.cuda_ops import table
from qinfer.plugins.quant.layers import build_layer

EXPERTS, OUT, IN = 4, 6, 32
SPEC = LinearSpec(
    name="layers.0.experts.gate_up",
    role="gate_up",
    in_features=IN,
    out_features=OUT,
    parts=(3, 3),
    experts=EXPERTS,
)
WINT4 = Scheme(name="wint4", weight_dtype="int4", weight_scale="group", group_size=16)
STATIC = Scheme(
    name="fp8",
    weight_dtype="float8_e4m3fn",
    weight_scale="channel",
    input_dtype="float8_e4m3fn",
    input_scale="tensor",
)


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    table.use(table.REFERENCE)


@pytest.fixture
def routed(rng):
    """Tokens of which none goes to expert 3, and few to expert 2."""
    experts = rng.integers(0, 2, (60, 2)).astype(np.int32)
    experts[:5, 1] = 2
    return Routed(rng.normal(size=(60, IN)).astype(np.float32), experts)


def test_the_rows_of_an_expert(routed):
    expected = [routed.x[t] for t in range(60) for j in range(2) if routed.experts[t, j] == 0]
    np.testing.assert_array_equal(routed.rows(0), expected)
    by_pair = Routed(np.repeat(routed.x, 2, axis=0), routed.experts)
    np.testing.assert_array_equal(by_pair.rows(0), expected)
    assert routed.rows(3).shape == (0, IN)


@pytest.mark.parametrize("scheme", [WINT4, STATIC], ids=lambda scheme: scheme.name)
def test_each_is_quantised_for_its_own_tokens(routed, scheme, rng):
    weights = rng.normal(size=(EXPERTS, OUT, IN)).astype(np.float32)
    recipe = Recipe(scheme=scheme, methods=("gptq",))
    made = quantise_experts(lambda e: weights[e], routed, SPEC, recipe)
    assert made.few == 2
    assert len(routed.rows(0)) >= FEWEST > len(routed.rows(2))
    if scheme is STATIC:
        (scale,) = made.arrays["input_scale"]
        assert scale == pytest.approx(np.abs(routed.x).max() / 448)
        recipe = Recipe(scheme=scheme, methods=("gptq",), input_scale=float(scale))
    alone = [quantise_linear(weights[e], routed.rows(e), recipe) for e in (0, 1)]
    plain = Recipe(scheme=scheme, methods=("absmax",), input_scale=recipe.input_scale)
    alone += [quantise_linear(weights[e], routed.x, plain) for e in (2, 3)]
    for name in ("weight", "scale"):
        expected = np.concatenate([one.arrays[name] for one in alone])
        np.testing.assert_array_equal(made.arrays[name], expected)
    assert made.error == pytest.approx(np.mean([one.error for one in alone[:2]]))


def dequantised(scheme, arrays):
    """The weight [out, in] in float64."""
    scale = arrays["scale"].reshape(len(arrays["weight"]), -1)
    whole = np.repeat(scale, IN // scale.shape[1], axis=1).astype(np.float64)
    zero = np.repeat(arrays.get("zero", np.zeros_like(scale)), IN // scale.shape[1], axis=1)
    weight = (arrays["weight"].astype(np.float64) - zero) * whole
    if "order" in arrays:
        back = np.empty_like(weight)
        back[:, arrays["order"]] = weight
        return back
    return weight


def grouped(rng, out, **more):
    arrays = {
        "weight": rng.integers(-8, 8, (out, IN)).astype(np.int8),
        "scale": rng.uniform(0.1, 0.2, (out, 2)).astype(np.float32),
    }
    if "zero" in more:
        arrays["zero"] = rng.integers(-8, 8, (out, 2)).astype(np.float32)
    if "order" in more:
        arrays["order"] = rng.permutation(IN)
    return arrays


def e4m3(rng, out, input_scale):
    weight = rng.normal(size=(out, IN)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.1, 0.2, out).astype(np.float32)
    return {"weight": weight, "scale": scale, "input_scale": np.float32([input_scale])}


def check(rng, parts, tolerance):
    """Joined as a checkpoint's projections are, against the dequantised weights."""
    scheme, arrays = join(parts)
    layer = build_layer(SPEC, scheme, {name: place(np.array(a)) for name, a in arrays.items()})
    x = rng.normal(size=(7, IN)).astype(np.float32)
    experts = rng.integers(0, EXPERTS, (7, 2)).astype(np.int32)
    got = layer(paddle.to_tensor(x), paddle.to_tensor(experts)).numpy().reshape(7, 2, OUT)
    weights = np.concatenate([dequantised(own, held) for own, held in parts])
    expected = np.einsum("ti,tjoi->tjo", x, weights.reshape(EXPERTS, OUT, IN)[experts])
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()
    assert layer.nbytes >= sum(array.nbytes for array in arrays.values()) * 0.9


def test_groups_with_zero_points(rng):
    check(rng, [(WINT4, grouped(rng, 3, zero=1)) for _ in range(2 * EXPERTS)], 1e-5)


def test_an_order_of_inputs_of_its_own(rng):
    check(rng, [(WINT4, grouped(rng, 3, zero=1, order=1)) for _ in range(2 * EXPERTS)], 1e-5)


@pytest.mark.parametrize("alike", [True, False], ids=["one scale", "a scale each"])
def test_static_e4m3_inputs(rng, alike):
    scales = [0.01 if alike else 0.01 + 0.002 * e for e in range(EXPERTS) for _ in range(2)]
    check(rng, [(STATIC, e4m3(rng, 3, scale)) for scale in scales], 0.1)


def test_schemes_may_differ_between_experts(rng):
    kinds = [(WINT4, grouped(rng, 3)), (STATIC, e4m3(rng, 3, 0.01))]
    check(rng, [kinds[(n // 2) % 2] for n in range(2 * EXPERTS)], 0.1)


def test_the_report_counts_experts_with_few_tokens(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "moe", tiny.CASES["moe"])
    calib = tmp_path / "few.jsonl"
    calib.write_text(json.dumps({"text": "a b c d e f g h " * 9}) + "\n", encoding="utf-8")
    settings = QuantizeSettings(model=str(folder), quant="a8w8", calib=calib, tokens=20)
    said = quantize(settings, tmp_path / "out", NoProgress())["linears"]
    assert said["layers.0.experts.gate_up"]["experts"] == 6
    assert said["layers.0.experts.gate_up"]["by_absmax"] == 6
    assert said["layers.0.experts.gate_up"]["error"] is None
    assert said["layers.0.shared.gate_up"]["error"] < 0.1


@pytest.fixture(scope="module", params=["moe", "qwen3_moe"])
def whole(request, tmp_path_factory):
    """A model with experts, texts that are not those of calibration, and its logits for them."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    tiny.write_checkpoint(folder, tiny.CASES[request.param])
    documents = read_corpus(EVALUATION, Tokenizer.load(folder))
    texts = [document[:48] for document in documents[:8]]
    return folder, texts, logits_of(folder, texts)


def logits_of(folder, texts):
    run = RunConfig(model=str(folder), dtype="float32")
    opened = load_model(run, select(run), folder, NoProgress())
    return np.concatenate([step_logits(opened, text, [len(text)]) for text in texts])


def test_gptq_and_awq_bring_a_whole_model_nearer(whole, tmp_path):
    folder, texts, exact = whole
    errors = {}
    for method in ("absmax", "gptq", "awq+gptq"):
        settings = QuantizeSettings(
            model=str(folder), quant="wint4", group_size=16, method=method, tokens=1500, window=64
        )
        report = quantize(settings, tmp_path / method, NoProgress())
        errors[method] = np.std(logits_of(tmp_path / method, texts) - exact)
        assert report["linears"]["layers.0.experts.gate_up"]["error"] > 0
    assert errors["gptq"] < 0.9 * errors["absmax"], errors
    assert errors["awq+gptq"] < 0.9 * errors["absmax"], errors
