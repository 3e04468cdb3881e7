"""Weight packing against the formulas in float64 and against Paddle's own quantiser."""

import ml_dtypes
import numpy as np
import paddle
import pytest

from qinfer.core.arrays import ROWS
from qinfer.core.errors import BadCheckpoint
from qinfer.core.hardware.place import place
from qinfer.core.types import LinearSpec, Scheme
from qinfer.cuda_ops import ops
from qinfer.plugins.quant.fp8 import pack_e4m3, round_to_e4m3
from qinfer.plugins.quant.none import pack_plain
from qinfer.plugins.quant.wint4 import pack_int4
from qinfer.plugins.quant.wint4_variants import pack_int4_zero_points
from qinfer.plugins.quant.wint8 import pack_int8

E4M3 = ml_dtypes.float8_e4m3fn
SPEC = LinearSpec(name="layers.0.o", role="o", in_features=24, out_features=40)
SHAPES = [(1, 16), (ROWS - 1, 60), (ROWS, 64), (3 * ROWS + 5, 77)]


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def weight_of(request, rng):
    dtype = np.dtype(getattr(ml_dtypes, request.param, request.param))
    return lambda shape: (rng.normal(size=shape) * 0.05).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_round_half_away_of_127_w_over_absmax(shape, weight_of):
    weight = weight_of(shape)
    exact = weight.astype(np.float64)
    absmax = np.abs(exact).max(axis=1)
    packed = pack_int8(weight)
    np.testing.assert_allclose(packed["scale"], absmax / 127, rtol=1e-6)
    scaled = exact / absmax[:, None] * 127
    got = packed["weight"].astype(np.float64)
    assert packed["weight"].dtype == np.int8
    # Half a step, and a little for ties that float32 sees a bit to the side.
    assert np.abs(got - scaled).max() <= 0.5 + 1e-4
    assert (np.abs(got).max(axis=1) == 127).all()


def test_int8_equals_paddles_weight_quantize(rng):
    weight = (rng.normal(size=(64, 128)) * 0.05).astype(np.float16)
    try:
        theirs, scale = paddle.nn.quant.weight_quantize(
            paddle.to_tensor(np.ascontiguousarray(weight.T)), algo="weight_only_int8", arch=80
        )
    except (RuntimeError, ValueError, OSError) as error:
        pytest.skip(f"this Paddle cannot quantise here: {error}")
    packed = pack_int8(weight)
    np.testing.assert_allclose(packed["scale"], scale.astype("float32").numpy(), rtol=2e-3)
    # The stored order is permuted for one GPU generation; the multiset of values is not.
    ours, other = np.sort(packed["weight"].ravel()), np.sort(theirs.numpy().ravel())
    counts = [np.bincount(x.astype(np.int64) + 128, minlength=256) for x in (ours, other)]
    shifted = np.roll(counts[1], 128)  # biased to unsigned in storage
    distance = min(np.abs(counts[0] - c).sum() for c in (counts[1], shifted))
    assert distance <= 0.02 * weight.size


@pytest.mark.parametrize("shape", SHAPES)
def test_e4m3_is_the_nearest_of_448_w_over_absmax(shape, weight_of):
    weight = weight_of(shape)
    exact = weight.astype(np.float64)
    absmax = np.abs(exact).max(axis=1)
    packed = pack_e4m3(weight)
    np.testing.assert_allclose(packed["scale"], absmax / 448, rtol=1e-6)
    grid = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64)
    grid = np.sort(grid[np.isfinite(grid)])
    scaled = exact / absmax[:, None] * 448
    nearest = np.abs(grid[None, None] - scaled[..., None]).min(axis=-1)
    got = packed["weight"].astype(np.float64)
    assert packed["weight"].dtype == E4M3
    np.testing.assert_allclose(np.abs(got - scaled), nearest, atol=448 * 1e-6)


def test_rounding_to_e4m3_is_that_of_ml_dtypes(rng):
    """Every code, every tie between two and its neighbours, and random numbers."""
    grid = np.arange(127, dtype=np.uint8).view(E4M3).astype(np.float32)
    ties = (grid[1:] + grid[:-1]) / 2
    near = [np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(999))]
    random = rng.uniform(0, 448, 50_000) * 2.0 ** -rng.integers(0, 20, 50_000)
    x = np.concatenate([grid, ties, *near, random]).astype(np.float32)
    x = np.concatenate([x, -x])
    got, expected = round_to_e4m3(x).view(np.uint8), x.astype(E4M3).view(np.uint8)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("shape", "group"),
    [((3, 64), 64), ((ROWS + 1, 192), 64), ((ROWS + 1, 256), 128), ((5, 96), 96)],
)
def test_int4_is_round_half_away_of_7_w_over_the_groups_absmax(shape, group, weight_of):
    weight = weight_of(shape)
    groups = weight.astype(np.float64).reshape(shape[0], -1, group)
    absmax = np.abs(groups).max(axis=2)
    packed = pack_int4(weight, group)
    np.testing.assert_allclose(packed["scale"], absmax / 7, rtol=1e-6)
    got = packed["weight"].astype(np.float64).reshape(groups.shape)
    assert np.abs(got - groups / absmax[:, :, None] * 7).max() <= 0.5 + 1e-5
    assert (np.abs(got).max(axis=2) == 7).all()


@pytest.mark.parametrize(("shape", "group"), [((ROWS + 1, 192), 64), ((5, 96), 96)])
def test_int4_with_zero_points_is_within_half_a_step(shape, group, weight_of):
    """Half a step for rounding the weight and half for rounding the zero point, at the ends."""
    weight = weight_of(shape) + weight_of((1, 1))
    weight[2, :group] = np.abs(weight[2, :group])  # 0 has to be held all the same
    exact = weight.astype(np.float64)
    packed = pack_int4_zero_points(weight, group)
    low, high = (
        getattr(exact.reshape(shape[0], -1, group), end)(axis=2, initial=0)
        for end in ("min", "max")
    )
    np.testing.assert_allclose(packed["scale"], (high - low) / 15, rtol=1e-5)
    codes, zero, scale = (packed[name].astype(np.float64) for name in ("weight", "zero", "scale"))
    assert (zero == np.rint(zero)).all()
    assert zero.min() >= -8
    assert zero.max() <= 7
    wide = [np.repeat(array, group, axis=1) for array in (zero, scale)]
    error = np.abs((codes - wide[0]) * wide[1] - exact) / wide[1]
    assert error.max() <= 1 + 1e-3
    inside = (codes > -8) & (codes < 7)
    assert error[inside].max() <= 0.5 + 1e-3
    assert (np.abs(codes).reshape(shape[0], -1) <= 8).all()


@pytest.mark.parametrize("pack", [pack_int8, pack_e4m3])
def test_a_channel_of_zeros_stays_zero(pack, rng):
    weight = rng.normal(size=(5, 8)).astype(np.float32)
    weight[2] = 0
    packed = pack(weight)
    assert packed["scale"][2] == 0
    assert (packed["weight"][2].astype(np.float32) == 0).all()
    assert np.isfinite(packed["weight"].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_plain_weights_are_rounded_once(dtype, weight_of):
    weight = weight_of((40, 24))
    scheme = Scheme(name="none", weight_dtype=dtype, input_dtype="float32")
    packed = pack_plain(SPEC, scheme, weight)["weight"]
    target = np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert packed.dtype == target
    np.testing.assert_array_equal(packed, weight.astype(target))
    assert np.shares_memory(packed, weight) == (weight.dtype == target)


def test_a_weight_too_large_for_the_dtype_is_named():
    weight = np.full((2, 4), 1e6, np.float32)
    scheme = Scheme(name="none", weight_dtype="float16", input_dtype="float32")
    with pytest.raises(BadCheckpoint, match=r"layers\.0\.o\.weight .*too large for float16"):
        pack_plain(SPEC, scheme, weight)


PACKERS = {"int8": pack_int8, "int4": pack_int4, "float8_e4m3fn": pack_e4m3}


@pytest.mark.parametrize("dtype", PACKERS)
def test_the_operator_has_the_same_formulas(dtype, weight_of):
    """It is what packs on a device."""
    weight = weight_of((2 * ROWS + 5, 128))
    weight[3] = 0
    expected = PACKERS[dtype](weight)
    codes, scale = ops.quantise(place(weight), dtype)
    assert (codes.astype("float32").numpy() == expected["weight"].astype(np.float32)).all()
    np.testing.assert_array_equal(scale.numpy(), expected["scale"])
