import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import reference64
from qinfer.cuda_ops import ops


def draw(logits, uniform, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, shortlist=0):
    rows = len(uniform)
    floats = [np.full(rows, v, np.float32) for v in (temperature, top_p, min_p)]
    t, p, m = map(paddle.to_tensor, floats)
    return ops.sample(
        paddle.to_tensor(np.broadcast_to(logits, (rows, len(logits))).copy()),
        t,
        paddle.to_tensor(np.full(rows, top_k)),
        p,
        m,
        paddle.to_tensor(np.asarray(uniform, np.float32)),
        shortlist,
    ).numpy()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 20]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_distribution_is_that_of_the_definitions(seed, temperature, top_k, top_p, min_p):
    """A fine grid of uniform numbers measures the probability of each token directly."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=30) * 2).astype(np.float32)
    grid = (np.arange(2000) + 0.5) / 2000
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    tokens = draw(logits, grid, **options)
    share = np.bincount(tokens, minlength=30) / len(grid)
    expected = reference64.keep_set(logits, temperature, top_k, top_p, min_p)
    np.testing.assert_allclose(share, expected, atol=1.5 / len(grid))


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0, 60.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 700}, {"top_p": 0.97}, {"min_p": 0.02}, {"top_k": 40, "top_p": 0.8}],
    ids=str,
)
def test_a_large_vocabulary_from_flat_to_steep(spread, options, rng):
    """Ranking stops at what it takes, which here is from one token to all of them."""
    logits = (rng.normal(size=3000) * spread).astype(np.float32)
    logits[17] = -np.inf
    grid = (np.arange(400) + 0.5) / 400
    tokens = draw(logits, grid, **options)
    expected = reference64.keep_set(logits, 1.0, *(options.get(k, d) for k, d in LIMITS.items()))
    order = np.lexsort((np.arange(3000), -logits))
    share = np.bincount(tokens, minlength=3000)[order] / len(grid)
    np.testing.assert_allclose(np.cumsum(share), np.cumsum(expected[order]), atol=3e-3)
    assert (expected[tokens] > 0).all()


LIMITS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_extreme_uniforms_give_a_kept_token(uniform):
    tokens = draw(np.array([0.0, 5.0, -np.inf, 4.9], np.float32), [uniform], top_p=0.9)
    assert tokens[0] in (1, 3)


def test_a_shortlist_changes_nothing(rng):
    logits = rng.normal(size=500).astype(np.float32)
    grid = np.linspace(0, 0.999, 300)
    full = draw(logits, grid, top_k=7, top_p=0.8)
    np.testing.assert_array_equal(draw(logits, grid, top_k=7, top_p=0.8, shortlist=7), full)


def test_rows_have_their_own_parameters(rng):
    logits = rng.normal(size=(3, 40)).astype(np.float32)
    got = ops.sample(
        paddle.to_tensor(logits),
        paddle.to_tensor(np.array([1, 0.5, 3], np.float32)),
        paddle.to_tensor(np.array([1, 0, 5])),
        paddle.to_tensor(np.array([1, 1e-6, 1], np.float32)),
        paddle.to_tensor(np.array([0, 0, 1], np.float32)),
        paddle.to_tensor(np.array([0.9, 0.9, 0.9], np.float32)),
        0,
    ).numpy()
    # top-k 1, a tiny top-p and min-p 1 each leave the best token alone.
    np.testing.assert_array_equal(got, logits.argmax(axis=1))


def test_temperature_0_takes_the_first_of_the_largest_beside_rows_that_are_drawn(rng):
    logits = rng.normal(size=(3, 40)).astype(np.float32)
    logits[0, [7, 30]] = 9
    temperature, top_k = np.array([0, 1, 0], np.float32), np.array([0, 0, 3])
    kept = (np.ones(3), np.zeros(3), np.full(3, 0.99))
    arrays = (logits, temperature, top_k, *(part.astype(np.float32) for part in kept))
    got = ops.sample(*map(paddle.to_tensor, arrays), 0).numpy()
    assert got[0] == 7
    assert got[2] == logits[2].argmax()


def test_edit_logits(rng):
    logits = rng.normal(size=(2, 6)).astype(np.float32)
    expected = logits.copy()
    expected[0, 2] = logits[0, 2] / 2 if logits[0, 2] > 0 else logits[0, 2] * 2
    expected[1, 0] += 3
    expected[1, 5] = -np.inf
    got = ops.edit_logits(
        paddle.to_tensor(logits),
        paddle.to_tensor(np.array([0, 1, 1])),
        paddle.to_tensor(np.array([2, 0, 5])),
        paddle.to_tensor(np.array([2, 1, 1], np.float32)),
        paddle.to_tensor(np.array([0, 3, -np.inf], np.float32)),
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_token_logprobs(rng):
    logits = rng.normal(size=(4, 50)).astype(np.float32) * 3
    chosen = np.array([3, 0, 49, 7])
    expected = np.log(reference64.softmax(logits.astype(np.float64)))
    picked, top, ids = ops.token_logprobs(paddle.to_tensor(logits), paddle.to_tensor(chosen), 5)
    np.testing.assert_allclose(picked.numpy(), expected[np.arange(4), chosen], atol=1e-5)
    np.testing.assert_array_equal(ids.numpy(), np.argsort(-logits, axis=1)[:, :5])
    np.testing.assert_allclose(top.numpy(), -np.sort(-expected, axis=1)[:, :5], atol=1e-5)
