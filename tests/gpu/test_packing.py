"""Weights quantised on the card: the numbers that the processor makes of them."""

import numpy as np
import pytest

from gpu.tools import back, card, rounded
from qinfer.cuda_ops import ops
from quant.test_packing import PACKERS


@pytest.mark.parametrize("held", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", PACKERS)
def test_codes_and_scales_are_the_same(dtype, held, rng):
    weight = rounded(rng.normal(size=(300, 1088)) * rng.uniform(1e-3, 1, (300, 1)), held)
    weight[3] = 0
    weight[5, :64] = 0
    expected = PACKERS[dtype](weight)
    codes, scale = ops.quantise(card(weight), dtype)
    np.testing.assert_array_equal(back(codes), expected["weight"].astype(np.float32))
    np.testing.assert_array_equal(back(scale), expected["scale"])
