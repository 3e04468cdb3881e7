"""Mixture of experts on a card, against float64 over the same quantised values."""

import numpy as np
import pytest

from gpu.layers import E4M3, coarse
from gpu.tools import DTYPES, ROUNDING, back, card, error, rounded
from ops import reference64
from ops.test_experts import by_expert, expected
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.graphs import Card, Graph

CASES = [
    (1, 4, 60, 2048, 32),
    (2, 8, 64, 128, 264),
    (7, 3, 8, 192, 40),
    (9, 8, 128, 1024, 300),
    (64, 2, 16, 64, 96),
    (300, 4, 6, 320, 520),
    (5, 1, 3, 704, 16),
    (1000, 8, 128, 64, 48),
]
"""Tokens, choices, experts, inputs, outputs of each."""


@pytest.fixture(params=CASES, ids=lambda case: "x".join(map(str, case)))
def case(request, rng):
    """Inputs for each token or each pair, experts [T, k] without repetition in a row."""
    tokens, top_k, count, width, out = request.param
    order = np.stack([rng.permutation(count)[:top_k] for _ in range(tokens)]).astype(np.int32)
    return order, {n: rng.normal(size=(n, width)) for n in (tokens, tokens * top_k)}, (count, out)


def check(case, dtype, product, weights, x_of=lambda x: x):
    """``product`` of both kinds of inputs; ``weights`` [E, in, out], ``x_of``: x as it is used."""
    experts, inputs, _ = case
    for x in inputs.values():
        given = rounded(x, dtype)
        got = back(product(card(given), card(experts)))
        assert error(got, expected(x_of(given), experts, weights)) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_expert_linear(case, dtype, rng):
    _, inputs, (count, out) = case
    width = next(iter(inputs.values())).shape[1]
    weight = rounded(rng.normal(size=(count * out, width)), dtype)
    held = ops.arrange_experts(card(weight), count, dtype)
    check(
        case,
        dtype,
        lambda x, e: ops.expert_linear(x, held, e, dtype, out),
        by_expert(weight, count),
    )


def scaled(rng, rows, *groups):
    return rng.uniform(1e-3, 1e-2, (rows, *groups)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expert_linear_int8(case, dtype, rng):
    _, inputs, (count, out) = case
    width = next(iter(inputs.values())).shape[1]
    weight = rng.integers(-127, 128, (count * out, width)).astype(np.int8)
    scale = scaled(rng, count * out)
    held, steps = ops.arrange_experts(card(weight), count, dtype), card(scale)
    check(
        case,
        dtype,
        lambda x, e: ops.expert_linear_int8(x, held, steps, e, out),
        by_expert(weight, count) * scale.reshape(count, 1, out),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_expert_linear_int4(case, dtype, rng):
    _, inputs, (count, out) = case
    width = next(iter(inputs.values())).shape[1]
    weight = rng.integers(-8, 8, (count * out, width)).astype(np.int8)
    scale = scaled(rng, count * out, width // 64)
    held, steps = ops.arrange_experts_int4(card(weight), card(scale), count)
    check(
        case,
        dtype,
        lambda x, e: ops.expert_linear_int4(x, held, steps, e, out),
        by_expert(weight * np.repeat(scale.astype(np.float64), 64, axis=1), count),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_expert_linear_fp8(case, dtype, rng):
    _, inputs, (count, out) = case
    width = next(iter(inputs.values())).shape[1]
    weight = (rng.normal(size=(count * out, width)) * 40).clip(-448, 448).astype(E4M3)
    scale = scaled(rng, count * out)
    held, steps = ops.arrange_experts(card(weight), count, dtype), card(scale)
    check(
        case,
        dtype,
        lambda x, e: ops.expert_linear_fp8(x, held, steps, e, out),
        by_expert(weight, count) * scale.reshape(count, 1, out),
        coarse,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 9, 200])
def test_expert_linear_fp8_block(tokens, dtype, rng):
    count, out, width, block = 5, 256, 320, 128
    weight = (rng.normal(size=(count * out, width)) * 40).clip(-448, 448).astype(E4M3)
    scale = scaled(rng, count * out // block, 3)
    whole = np.repeat(np.repeat(scale, block, 0), block, 1)[:, :width].astype(np.float64)
    experts = np.stack([rng.permutation(count)[:2] for _ in range(tokens)]).astype(np.int32)
    x = rounded(rng.normal(size=(tokens, width)), dtype)
    runs = [coarse(x[:, start : start + block]) for start in range(0, width, block)]
    want = expected(
        np.concatenate(runs, axis=1), experts, by_expert(weight.astype(np.float64) * whole, count)
    )
    held = ops.arrange_experts_fp8(card(weight), count)
    placed = map(card, (scale, experts))
    got = ops.expert_linear_fp8_block(card(x), held, *placed, block, out)
    assert error(back(got), want) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_expert_linear_a8w8(case, dtype, rng):
    _, inputs, (count, out) = case
    width = next(iter(inputs.values())).shape[1]
    weight = rng.integers(-127, 128, (count * out, width)).astype(np.int8)
    scale = scaled(rng, count * out)
    held, steps = ops.arrange_experts_a8w8(card(weight), count), card(scale)
    check(
        case,
        dtype,
        lambda x, e: ops.expert_linear_a8w8(x, held, steps, e, None, out),
        by_expert(weight, count) * scale.reshape(count, 1, out),
        lambda x: coarse(x, 127),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("tokens", "count", "top_k"), [(1, 60, 4), (9, 8, 8), (40, 128, 8), (5, 200, 6), (3, 512, 10)]
)
def test_route(tokens, count, top_k, normalise, dtype, rng):
    logits = rounded(rng.normal(size=(tokens, count)) * 3, dtype)
    weights, experts = (back(part) for part in ops.route(card(logits), top_k, normalise))
    probabilities = reference64.softmax(logits.astype(np.float64))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(experts, order)  # 16-bit logits are often equal
    want = np.take_along_axis(probabilities, order, axis=1)
    want = want / want.sum(axis=1, keepdims=True) if normalise else want
    np.testing.assert_allclose(weights, want, rtol=1e-5)


def test_logits_that_are_no_numbers_choose_experts_that_exist():
    """Padding of a recorded batch may hold anything."""
    logits = np.full((2, 60), np.nan, np.float32)
    logits[1] = -np.inf
    _, experts = ops.route(card(rounded(logits, "bfloat16")), 4, True)
    np.testing.assert_array_equal(back(experts), [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mix_experts(dtype, rng):
    tokens, top_k, width = 5, 3, 1032
    routed = rounded(rng.normal(size=(tokens * top_k, width)), dtype)
    weights = rng.uniform(size=(tokens, top_k)).astype(np.float32)
    shared, gate = (rounded(rng.normal(size=(tokens, n)) * 2, dtype) for n in (width, 1))
    want = np.einsum("tkh,tk->th", routed.astype(np.float64).reshape(tokens, top_k, -1), weights)
    alone = ops.mix_experts(card(routed), card(weights), None, None)
    assert error(back(alone), want) < ROUNDING[dtype]
    both = ops.mix_experts(card(routed), card(weights), card(shared), card(gate))
    want += shared.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64)))
    assert error(back(both), want) < ROUNDING[dtype]


@pytest.mark.parametrize("tokens", [4, 40, 200])
def test_experts_that_are_not_chosen_are_not_read(tokens, rng):
    """Their weights are NaN: touching one would show."""
    weight = np.full((6 * 16, 64), np.nan)
    weight[16 * 2 : 16 * 3] = rng.normal(size=(16, 64))
    held = rounded(weight, "bfloat16")
    x = rounded(rng.normal(size=(tokens, 64)), "bfloat16")
    chosen = np.full((tokens, 1), 2, np.int32)
    got = back(ops.expert_linear(card(x), card(held), card(chosen), "bfloat16", 16))
    exact = x.astype(np.float64) @ held[32:48].T.astype(np.float64)
    assert error(got, exact) < ROUNDING["bfloat16"]


@pytest.mark.parametrize("tokens", [1, 6, 90])
def test_a_replay_goes_to_other_experts(tokens, library, rng):
    """Their choice is in the graph's data, not in the graph."""
    up, down = (
        card(rounded(rng.normal(size=(9 * out, width)), "bfloat16"))
        for width, out in ((128, 64), (64, 32))
    )

    def call(logits, x):
        weights, experts = ops.route(logits, 3, True)
        hidden = ops.expert_linear(x, up, experts, "bfloat16", 64)
        routed = ops.expert_linear(hidden, down, experts, "bfloat16", 32)
        return ops.mix_experts(routed, weights, None, None)

    def fresh():
        return [card(rounded(rng.normal(size=(tokens, n)), "bfloat16")) for n in (9, 128)]

    kept, inputs = Card(library, 0), fresh()
    call(*inputs)
    kept.wait()
    graph = Graph(kept, lambda: call(*inputs))
    for _ in range(4):
        others = fresh()
        want = back(call(*others))
        for old, new in zip(inputs, others, strict=True):
            kept.copy(old.data_ptr(), new.data_ptr(), int(new.size) * 2)
        graph.replay()
        kept.wait()
        np.testing.assert_array_equal(back(graph.result), want)
