"""The numerics of calibration: grids, scale searches and GPTQ, against their definitions."""

import ml_dtypes
import numpy as np
import pytest

from qinfer.core.quantize import gptq as gptq_module
from qinfer.core.quantize.gptq import gptq
from qinfer.core.quantize.linear import Recipe, quantise_linear
from qinfer.core.quantize.products import gram
from qinfer.core.quantize.rounding import (
    TOPS,
    Grid,
    input_scale,
    rounded_input,
)
from qinfer.core.quantize.scaling import awq_candidates, best_scale, smooth_candidates
from qinfer.core.types import Scheme

DTYPES = ["int8", "int4", "float8_e4m3fn"]


@pytest.fixture
def layer(rng):
    """A weight and inputs that are correlated and have outliers, as activations do."""
    mix = rng.normal(size=(48, 48)) / 7
    x = rng.normal(size=(300, 48)) @ mix + 0.3 * rng.normal(size=(300, 48))
    x[:, [3, 17]] *= 25
    return rng.normal(size=(40, 48)).astype(np.float32), x.astype(np.float32)


@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_grid_rounds_to_the_nearest_of_its_numbers(dtype, group, rng):
    weight = rng.normal(size=(5, 48)).astype(np.float32)
    grid = Grid(dtype=dtype, group=group)
    fit = grid.fit(weight)
    scale = fit.scale
    tiles = np.abs(weight).reshape(5, -1, group or 48)
    np.testing.assert_allclose(scale, tiles.max(axis=2) / TOPS[dtype], rtol=1e-6)
    whole = np.repeat(scale, group or 48, axis=1)
    if dtype == "float8_e4m3fn":
        numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        numbers = numbers[np.isfinite(numbers)]
    else:
        numbers = np.arange(-TOPS[dtype] - 1, TOPS[dtype] + 1)
    nearest = np.abs(weight[..., None] / whole[..., None] - numbers).min(axis=-1)
    rounded = grid.rounded(weight, fit)
    np.testing.assert_allclose(np.abs(rounded - weight) / whole, nearest, atol=1e-4)
    codes = grid.codes(weight, fit)
    assert codes.dtype.name == ("float8_e4m3fn" if "float8" in dtype else "int8")
    np.testing.assert_allclose(codes.astype(np.float32) * whole, rounded, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_searched_scale_makes_no_larger_error(dtype, rng):
    weight = (rng.standard_t(3, size=(20, 64))).astype(np.float32)
    grid = Grid(dtype=dtype)
    errors = [
        ((grid.rounded(weight, grid.fit(weight, by)) - weight) ** 2).sum(axis=1)
        for by in ("absmax", "mse")
    ]
    assert (errors[1] <= errors[0]).all()
    if dtype == "int4":
        assert errors[1].sum() < 0.9 * errors[0].sum()


def test_a_searched_scale_serves_the_inputs_that_matter(rng):
    weight = rng.normal(size=(20, 64)).astype(np.float32)
    weight[:, 0] *= 20  # what absolute maxima are found at, and no input matters less
    importance = np.ones(64, np.float32)
    importance[0] = 1e-6
    grid = Grid(dtype="int4", group=32)
    errors = [
        (((grid.rounded(weight, grid.fit(weight, "mse", by)) - weight) ** 2) * importance).sum()
        for by in (None, importance)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_zeros_stay_zeros():
    weight = np.zeros((3, 16), np.float32)
    for dtype in DTYPES:
        grid = Grid(dtype=dtype)
        for by in ("absmax", "mse"):
            assert not grid.rounded(weight, grid.fit(weight, by)).any()


def test_activations_by_token_and_by_one_scale(rng):
    x = rng.normal(size=(6, 32)).astype(np.float32) * np.array([[1], [100]] * 3, np.float32)
    grid = Grid(dtype="int8")
    by_token = rounded_input(grid, x, None)
    assert np.abs(by_token - x).max(axis=1) == pytest.approx(np.abs(x).max(axis=1) / 254, rel=0.5)
    fixed = input_scale(grid, x, "absmax")
    assert fixed == pytest.approx(np.abs(x).max() / 127)
    assert np.abs(rounded_input(grid, x, fixed) - x).max() <= fixed / 2 * 1.001


def error_of(weight, held, x):
    return ((x @ (held - weight).T) ** 2).sum()


@pytest.mark.parametrize(("dtype", "group"), [("int4", 16), ("int4", 0), ("int8", 0)])
def test_gptq_lowers_the_outputs_error_on_correlated_inputs(dtype, group, layer):
    weight, x = layer
    grid = Grid(dtype=dtype, group=group)
    fit = grid.fit(weight)
    held = gptq(weight, x.T @ x, grid, fit)
    assert error_of(weight, held, x) < 0.65 * error_of(weight, grid.rounded(weight, fit), x)
    # What it gives lies on the grid.
    np.testing.assert_allclose(grid.rounded(held, fit), held, atol=1e-6)


def test_gptq_on_independent_inputs_is_plain_rounding(rng):
    weight = rng.normal(size=(10, 32)).astype(np.float32)
    grid = Grid(dtype="int4")
    fit = grid.fit(weight)
    held = gptq(weight, np.eye(32, dtype=np.float32) * 9, grid, fit)
    np.testing.assert_array_equal(held, grid.rounded(weight, fit))


def test_gptq_follows_the_algorithm_column_by_column(rng):
    """Against optimal brain quantisation in float64, updating the inverse one step at a time."""
    weight = rng.normal(size=(4, 12)).astype(np.float32)
    x = (rng.normal(size=(50, 12)) @ rng.normal(size=(12, 12))).astype(np.float32)
    grid = Grid(dtype="int4")
    fit = grid.fit(weight)
    hessian = x.T.astype(np.float64) @ x
    hessian += 0.05 * np.mean(np.diag(hessian)) * np.eye(12)
    order = np.argsort(-np.diag(x.T @ x), kind="stable")
    scale = fit.scale[:, 0]
    left, expected, remaining = weight.astype(np.float64), np.zeros((4, 12)), list(order)
    while remaining:
        inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
        column = remaining[0]
        expected[:, column] = np.clip(np.rint(left[:, column] / scale), -8, 7) * scale
        error = (left[:, column] - expected[:, column]) / inverse[0, 0]
        left[:, remaining] -= error[:, None] * inverse[0]
        remaining = remaining[1:]
    np.testing.assert_allclose(gptq(weight, x.T @ x, grid, fit), expected, atol=1e-4)


def test_gptq_in_parts_gives_the_same(layer, monkeypatch):
    weight, x = layer
    grid = Grid(dtype="int4", group=16, has_zero=True)
    fit = grid.fit(weight)
    whole = gptq(weight, x.T @ x, grid, fit)
    monkeypatch.setattr(gptq_module, "OUTPUTS", 16)
    monkeypatch.setattr(gptq_module, "BLOCK", 7)
    np.testing.assert_allclose(gptq(weight, x.T @ x, grid, fit), whole, atol=1e-5)


@pytest.mark.parametrize("sizes", [(512, 2048), (96, 128)])
def test_the_shares_make_the_damped_hessian_diagonal(rng, monkeypatch, sizes):
    """U^-1 H U^-T = D, by float64."""
    monkeypatch.setattr(gptq_module, "PANEL", sizes[0])
    monkeypatch.setattr(gptq_module, "STRIP", sizes[1])
    x = rng.normal(size=(900, 400)).astype(np.float32)
    x[:, 7] = 0
    hessian = x.T @ x
    order = rng.permutation(400)
    shares = gptq_module._shares(hessian, order).astype(np.float64)
    damped = hessian.astype(np.float64)
    damped[7, 7] = 1
    damped += gptq_module.DAMP * np.mean(np.diag(damped)) * np.eye(400)
    upper = np.triu(shares.T)
    np.testing.assert_array_equal(np.diag(upper), 1)
    inverse = np.linalg.inv(upper)
    left = inverse @ damped[np.ix_(order, order)] @ inverse.T
    np.testing.assert_allclose(left, np.diag(np.diag(left)), atol=1e-4 * np.diag(left).max())


def test_a_hessian_that_is_not_positive_is_damped_more(rng):
    hessian = rng.normal(size=(40, 40)).astype(np.float32)
    shares = gptq_module._shares(hessian + hessian.T, np.arange(40))
    assert np.isfinite(np.tril(shares)).all()


@pytest.mark.parametrize("inputs", [1, 5, 13, 400])
def test_a_gram_matrix_is_that_of_float64(rng, inputs):
    x = rng.normal(size=(300, inputs)).astype(np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(gram(x), exact.T @ exact, atol=1e-3)


def test_gptq_survives_inputs_that_are_always_zero(layer):
    weight, x = layer
    x[:, 5] = 0
    grid = Grid(dtype="int4")
    assert np.isfinite(gptq(weight, x.T @ x, grid, grid.fit(weight))).all()


@pytest.mark.parametrize("candidates", [smooth_candidates, awq_candidates])
def test_the_best_scale_is_the_best_of_those_tried(candidates, layer):
    weight, x = layer
    grid = Grid(dtype="int8")

    def outputs(inputs, weights):
        return rounded_input(grid, inputs, None) @ grid.rounded(weights, grid.fit(weights)).T

    def error(scale):
        return ((outputs(x / scale, weight * scale) - x @ weight.T) ** 2).sum()

    found = best_scale(x, weight, candidates(x, weight), outputs)
    tried = [error(scale) for scale in candidates(x, weight)]
    assert error(found) == pytest.approx(min(tried))
    assert error(found) < 0.5 * error(np.ones(48, np.float32))


@pytest.mark.parametrize("zero_points", [False, True])
def test_awq_lowers_the_error_that_searched_scales_leave(zero_points, layer):
    """It is judged by those scales, so what it finds cannot be worse than no scaling."""
    weight, x = layer
    scheme = Scheme(name="wint4", weight_dtype="int4", weight_scale="group", group_size=16)
    plain, scaled = (
        quantise_linear(
            weight, x, Recipe(scheme=scheme, methods=by, may_scale=True, zero_points=zero_points)
        ).error
        for by in ({"mse"}, {"awq", "mse"})
    )
    assert scaled < 0.95 * plain


@pytest.mark.parametrize("method", ["absmax", "mse", "smoothquant", "gptq", "smoothquant+gptq"])
@pytest.mark.parametrize("input_kind", ["token", "tensor"])
def test_a_linears_report_is_the_error_of_its_arrays(method, input_kind, layer):
    weight, x = layer
    scheme = Scheme(name="a8w8", weight_dtype="int8", weight_scale="channel",
                    input_dtype="int8", input_scale=input_kind)  # fmt: skip
    recipe = Recipe(scheme=scheme, methods=method.split("+"), may_scale=True)
    made = quantise_linear(weight, x, recipe)
    arrays = made.arrays
    assert ("smooth" in arrays) == ("smoothquant" in method)
    eased = x * arrays.get("smooth", np.float32(1))
    fixed = arrays.get("input_scale")
    step = np.abs(eased).max(axis=1, keepdims=True) / 127 if fixed is None else fixed
    got = np.clip(np.rint(eased / step), -128, 127) * step
    got = got @ (arrays["weight"] * arrays["scale"][:, None].astype(np.float64)).T
    exact = x.astype(np.float64) @ weight.T
    error = np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean())
    assert made.error == pytest.approx(error, rel=0.02)
    assert made.error < 0.05
