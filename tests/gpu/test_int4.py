"""One row through int4 weights on a card, where inputs become whole numbers, 64 at a time: inputs
of every size against float64.
"""

import numpy as np
import pytest

from gpu.tools import ROUNDING, back, card, error, rounded
from qinfer.cuda_ops import ops

WIDTH, OUT = 1984, 2008
"""31 groups, of which one stands alone, and half a tile of channels. With fewer outputs inputs stay
numbers.
"""
GROUPS = WIDTH // 64


def product(x, codes, scale):
    """What the card makes of it, and float64."""
    got = ops.linear_int4(card(x), *ops.arrange_int4(card(codes), card(scale)), None, len(codes))
    weight = codes * np.repeat(scale.astype(np.float64), 64, axis=1)
    return back(got), x.astype(np.float64) @ weight.T


def numbers(rng, shape=(1, WIDTH)):
    return rng.normal(size=shape)


def codes_and_scale(rng):
    scale = rng.uniform(1e-2, 1e-1, (OUT, GROUPS)).astype(np.float32)
    return rng.integers(-8, 8, (OUT, WIDTH)).astype(np.int8), scale


@pytest.mark.parametrize("out", [72, OUT])
def test_a_large_mean_with_the_least_weights(out, rng):
    """All sums of a group at their largest."""
    codes, scale = codes_and_scale(rng)
    got, expected = product(
        rounded(numbers(rng) + 100, "bfloat16"), np.full_like(codes, -8)[:out], scale[:out]
    )
    assert error(got, expected) < ROUNDING["bfloat16"]


def test_a_large_mean_that_cancels(rng):
    """What is left of sums that are a thousand times as large is as exact as their inputs."""
    codes, scale = codes_and_scale(rng)
    codes = np.maximum(codes, -7)
    codes[:, 1::2] = -codes[:, ::2]
    x = rounded(numbers(rng) + 100, "bfloat16")
    got, expected = product(x, codes, scale)
    assert error(got, expected) < ROUNDING["bfloat16"]


def test_groups_of_any_size(rng):
    """Each counts as much as the others, as weights' scales make good what inputs differ by."""
    codes, scale = codes_and_scale(rng)
    power = rng.integers(-40, 40, GROUPS)
    x = rounded(numbers(rng) * np.repeat(2.0**power, 64), "bfloat16")
    got, expected = product(x, codes, (scale * 2.0**-power).astype(np.float32))
    assert error(got, expected) < ROUNDING["bfloat16"]


@pytest.mark.parametrize("most", [127.5, -127.5, 64.0, 127.0])
def test_small_numbers_beside_a_large_one(most, rng):
    """They count, as the large one's weights are 0. Of a bfloat16 127.5 sets all bits."""
    codes, scale = codes_and_scale(rng)
    x = rng.uniform(-2, 2, (1, WIDTH))
    x[:, ::64], codes[:, ::64] = most, 0
    got, expected = product(rounded(x, "bfloat16"), codes, scale)
    assert error(got, expected) < ROUNDING["bfloat16"]


def test_the_largest_of_a_group_is_exact(rng):
    codes, scale = codes_and_scale(rng)
    x = np.zeros((1, WIDTH))
    x[:, ::64] = rng.choice([255, -255, 254, 128, -128, 129, 1], GROUPS)
    got, expected = product(rounded(x, "bfloat16"), codes, scale)
    assert error(got, expected) < ROUNDING["bfloat16"]


def test_no_inputs_but_zeros(rng):
    codes, scale = codes_and_scale(rng)
    got, _ = product(rounded(np.zeros((1, WIDTH)), "bfloat16"), codes, scale)
    np.testing.assert_array_equal(got, np.zeros((1, OUT)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 77, WIDTH - 1])
def test_what_is_no_number_is_not_hidden(value, at, rng):
    codes, scale = codes_and_scale(rng)
    x = rounded(numbers(rng), "bfloat16")
    x[0, at] = value
    got, _ = product(x, codes, scale)
    assert not np.isfinite(got).any()
