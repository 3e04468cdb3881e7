"""Routing, the products of chosen experts and their sum, against float64."""

import ml_dtypes
import numpy as np
import pytest

from ops import reference64
from ops.tools import tensors
from qinfer.core.hardware.place import place
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.build import build, plan_build
from qinfer.cuda_ops.record import Recorder, Recording

E4M3 = ml_dtypes.float8_e4m3fn
SHAPES = [(1, 4, 60, 64, 32), (7, 2, 5, 63, 48), (33, 3, 8, 64, 20), (5, 1, 3, 128, 16)]
"""Tokens, choices, experts, inputs, outputs."""


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def case(request, rng):
    """Inputs for each token or each pair, experts [T, k] without repetition in a row."""
    tokens, top_k, count, inputs, outputs = request.param
    order = np.stack([rng.permutation(count)[:top_k] for _ in range(tokens)]).astype(np.int32)
    x = {n: rng.normal(size=(n, inputs)).astype(np.float32) for n in (tokens, tokens * top_k)}
    return x, order, (count, inputs, outputs)


def expected(x, experts, weights):
    """Row by row in float64; weights [E, in, out]."""
    chosen = experts.reshape(-1)
    rows = np.repeat(x.astype(np.float64), len(chosen) // len(x), axis=0)
    return np.stack([row @ weights[e] for row, e in zip(rows, chosen, strict=True)])


def by_expert(weight, count):
    """[E * out, in] -> [E, in, out] in float64."""
    return weight.astype(np.float64).reshape(count, -1, weight.shape[1]).transpose(0, 2, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_expert_linear(case, dtype, rng):
    inputs, experts, (count, width, out) = case
    weight = rng.normal(size=(count * out, width)).astype(getattr(ml_dtypes, dtype, dtype))
    arranged = ops.arrange_experts(*tensors(weight), count, "float32")
    for x in inputs.values():
        got = ops.expert_linear(*tensors(x), arranged, *tensors(experts), dtype, out).numpy()
        want = expected(x, experts, by_expert(weight, count))
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_expert_linear_int8(case, rng):
    inputs, experts, (count, width, out) = case
    weight = rng.integers(-127, 128, (count * out, width)).astype(np.int8)
    scale = rng.uniform(1e-3, 1, count * out).astype(np.float32)
    arranged = ops.arrange_experts(*tensors(weight), count, "float32")
    exact = by_expert(weight, count) * scale.reshape(count, 1, out)
    for x in inputs.values():
        got = ops.expert_linear_int8(*tensors(x), arranged, *tensors(scale, experts), out).numpy()
        want = expected(x, experts, exact)
        # A version may round x to sixteen bits of its row's largest magnitude.
        np.testing.assert_allclose(got, want, atol=5e-5 * np.abs(want).max())


def test_expert_linear_fp8(case, rng):
    inputs, experts, (count, width, out) = case
    weight = (rng.normal(size=(count * out, width)) * 40).clip(-448, 448).astype(E4M3)
    scale = rng.uniform(1e-3, 1, count * out).astype(np.float32)
    arranged = ops.arrange_experts(*tensors(weight), count, "float32")
    exact = by_expert(weight, count) * scale.reshape(count, 1, out)
    for x in inputs.values():
        got = ops.expert_linear_fp8(*tensors(x), arranged, *tensors(scale, experts), out).numpy()
        x_scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(448)
        rounded = np.clip(x / x_scale, -448, 448).astype(E4M3).astype(np.float64) * x_scale
        want = expected(rounded, experts, exact)
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("block", [4, 8, 128])
def test_expert_linear_fp8_block(block, case, rng):
    inputs, experts, (count, width, out) = case
    out = -(-out // block) * block
    weight = (rng.normal(size=(count * out, width)) * 40).clip(-448, 448).astype(E4M3)
    scale = rng.uniform(1e-3, 1, (count * out // block, -(-width // block))).astype(np.float32)
    arranged = ops.arrange_experts_fp8(*tensors(weight), count)
    whole = np.repeat(np.repeat(scale, block, 0), block, 1)[:, :width]
    exact = by_expert(weight.astype(np.float64) * whole, count)
    for x in inputs.values():
        got = ops.expert_linear_fp8_block(
            *tensors(x), arranged, *tensors(scale, experts), block, out
        )
        rounded = np.zeros(x.shape)
        for start in range(0, width, block):
            run = x[:, start : start + block]
            unit = np.abs(run).max(axis=1, keepdims=True) / np.float32(448)
            codes = np.clip(run / unit, -448, 448).astype(E4M3)
            rounded[:, start : start + block] = codes.astype(np.float64) * unit
        want = expected(rounded, experts, exact)
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("count", "out", "group"), [(60, 32, 64), (3, 20, 64), (5, 32, 128)])
def test_expert_linear_int4(count, out, group, rng):
    experts = rng.integers(0, count, (6, 2)).astype(np.int32)
    weight = rng.integers(-8, 8, (count * out, 128)).astype(np.int8)
    scale = rng.uniform(1e-2, 1, (count * out, 128 // group)).astype(np.float32)
    arranged, scales = ops.arrange_experts_int4(*tensors(weight, scale), count)
    whole = by_expert(weight.astype(np.float64) * np.repeat(scale, group, axis=1), count)
    for rows in (6, 12):
        x = rng.normal(size=(rows, 128)).astype(np.float32)
        got = ops.expert_linear_int4(*tensors(x), arranged, scales, *tensors(experts), out)
        want = expected(x, experts, whole)
        np.testing.assert_allclose(got.numpy(), want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("tokens", "count", "top_k"), [(1, 60, 4), (9, 8, 8), (40, 128, 8)])
def test_route(tokens, count, top_k, normalise, rng):
    logits = (rng.normal(size=(tokens, count)) * 3).astype(np.float32)
    weights, experts = (part.numpy() for part in ops.route(*tensors(logits), top_k, normalise))
    probabilities = reference64.softmax(logits.astype(np.float64))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    assert experts.dtype == np.int32
    np.testing.assert_array_equal(experts, order)
    want = np.take_along_axis(probabilities, order, axis=1)
    want = want / want.sum(axis=1, keepdims=True) if normalise else want
    np.testing.assert_allclose(weights, want, rtol=1e-5)


def test_equal_logits_choose_the_lower_experts():
    logits = np.zeros((2, 70), np.float32)
    logits[1, 40:60] = 1
    _, experts = ops.route(*tensors(logits), 4, False)
    np.testing.assert_array_equal(experts.numpy(), [[0, 1, 2, 3], [40, 41, 42, 43]])


def test_mix_experts(rng):
    routed = rng.normal(size=(5 * 3, 16)).astype(np.float32)
    weights = rng.uniform(size=(5, 3)).astype(np.float32)
    shared, gate = rng.normal(size=(5, 16)), rng.normal(size=(5, 1)) * 4
    want = np.einsum("tkh,tk->th", routed.reshape(5, 3, 16).astype(np.float64), weights)
    alone = ops.mix_experts(*tensors(routed, weights), None, None)
    np.testing.assert_allclose(alone.numpy(), want, atol=1e-6)
    both = tensors(shared.astype(np.float32), gate.astype(np.float32))
    got = ops.mix_experts(*tensors(routed, weights), *both)
    np.testing.assert_allclose(got.numpy(), want + shared / (1 + np.exp(-gate)), atol=1e-5)


def test_experts_that_are_not_chosen_are_not_read(rng):
    """Their weights are NaN: touching one would show."""
    weight = np.full((6 * 16, 32), np.nan, np.float32)
    weight[16 * 2 : 16 * 3] = rng.normal(size=(16, 32))
    arranged = ops.arrange_experts(*tensors(weight), 6, "float32")
    x = rng.normal(size=(4, 32)).astype(np.float32)
    chosen = np.full((4, 1), 2, np.int32)
    got = ops.expert_linear(*tensors(x), arranged, *tensors(chosen), "float32", 16)
    np.testing.assert_allclose(got.numpy(), x @ weight[32:48].T, atol=1e-4)


def product_of(dtype, count, out, width, rng):
    """The arranged weights of some experts, and their product as a function of x and experts."""
    if dtype == "fp8 blocks":
        (codes,) = tensors((rng.normal(size=(count * out, width)) * 30).astype(E4M3))
        (by_block,) = tensors(rng.uniform(0.1, 1, (count * out // 16, width // 16)).astype("f4"))
        packed = ops.arrange_experts_fp8(codes, count)
        return lambda x, e: ops.expert_linear_fp8_block(x, packed, by_block, e, 16, out)
    weight = rng.normal(size=(count * out, width)) * (3 if dtype == "int4" else 30)
    held = "int8" if dtype == "int4" else dtype
    rounded = weight.clip(-8, 7) if dtype == "int4" else weight.clip(-100, 100)
    (weight,) = tensors(rounded.astype(getattr(ml_dtypes, held, held)))
    groups = width // 64 if dtype == "int4" else 0
    scale = rng.uniform(0.1, 1, (count * out, groups) if groups else count * out)
    (scale,) = tensors(scale.astype(np.float32))
    if dtype == "int4":
        arranged, scale = ops.arrange_experts_int4(weight, scale, count)
        return lambda x, e: ops.expert_linear_int4(x, arranged, scale, e, out)
    arranged = ops.arrange_experts(weight, count, "float32")
    if dtype == "int8":
        return lambda x, e: ops.expert_linear_int8(x, arranged, scale, e, out)
    if dtype == "float8_e4m3fn":
        return lambda x, e: ops.expert_linear_fp8(x, arranged, scale, e, out)
    return lambda x, e: ops.expert_linear(x, arranged, e, dtype, out)


DTYPES = ["float32", "bfloat16", "int8", "int4", "float8_e4m3fn", "fp8 blocks"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(dtype, version, rng):
    """Bit for bit: neither on the batch nor on which other rows its expert has."""
    if version != "cpu":
        pytest.skip("Paddle's product adds in an order that depends on the shape")
    product = product_of(dtype, 4, 48, 128, rng)
    x = rng.normal(size=(100, 128)).astype(np.float32)
    experts = rng.integers(0, 4, (100, 2)).astype(np.int32)
    whole = product(*tensors(x, experts)).numpy()
    for count in (1, 2, 3, 7, 33, 64):
        part = product(*tensors(x[:count], experts[:count])).numpy()
        np.testing.assert_array_equal(part, whole[: 2 * count])
    each = product(*tensors(np.repeat(x, 2, axis=0), experts)).numpy()
    np.testing.assert_array_equal(each, whole)
    moved = product(*tensors(x[::-1], experts[::-1])).numpy()
    np.testing.assert_array_equal(moved.reshape(100, 2, -1)[::-1].reshape(whole.shape), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replay_goes_to_other_experts(dtype, version, rng):
    """Their choice is in the recorded steps' data, not in the recording."""
    if version != "cpu":
        pytest.skip("Paddle's own operators are not recorded")
    recorder = Recorder(build(plan_build()))
    up, down = product_of(dtype, 9, 64, 128, rng), product_of(dtype, 9, 32, 64, rng)

    def call(logits, x):
        weights, experts = ops.route(logits, 3, True)
        return ops.mix_experts(down(up(x, experts), experts), weights, None, None)

    logits, x = np.zeros((5, 9), np.float32), np.ones((5, 128), np.float32)
    inputs = place(logits), place(x)  # which share memory with the arrays
    recording = Recording(recorder, lambda: call(*inputs))
    assert recording.size == 4
    for _ in range(4):
        logits[:] = rng.normal(size=logits.shape)
        x[:] = rng.normal(size=x.shape)
        expected = call(*tensors(logits.copy(), x.copy())).numpy()
        np.testing.assert_array_equal(recording.replay().numpy(), expected)
