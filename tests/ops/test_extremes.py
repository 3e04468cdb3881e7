"""What every operator has to stand: no rows at all, thousands of them, views, any threads."""

import ml_dtypes
import numpy as np
import paddle
import pytest

from ops import reference64
from ops.test_attention import paged
from qinfer.core.hardware.place import place
from qinfer.core.hardware.start_paddle import import_paddle
from qinfer.cuda_ops import ops

IN, OUT, HEADS, DIM = 64, 200, 4, 16
FORMATS = ["float32", "bfloat16", "int8", "int4", "float8_e4m3fn"]


def weight_of(dtype):
    """A weight [OUT, IN] that the format holds exactly, and the product with it."""
    rng = np.random.default_rng(5)
    held = getattr(ml_dtypes, dtype, dtype) if dtype != "int4" else "int8"
    numbers = rng.integers(-7, 8, (OUT, IN)).astype(np.float32)
    weight, scale = place(numbers.astype(held)), paddle.ones([OUT])
    if dtype == "int4":
        arranged, scales = ops.arrange_int4(weight, paddle.ones([OUT, 1]))
        return numbers, lambda x: ops.linear_int4(x, arranged, scales, None, OUT)
    arranged = ops.arrange(weight, "float32")
    if dtype == "int8":
        return numbers, lambda x: ops.linear_int8(x, arranged, scale, None)
    if dtype == "float8_e4m3fn":
        return numbers, lambda x: ops.linear_fp8(x, arranged, scale, None)
    return numbers, lambda x: ops.linear(x, arranged, None, dtype, OUT)


def attend(rng, counts, lengths):
    cache, tables, contents = paged(rng, lengths, HEADS // 2, DIM)
    queries = rng.normal(size=(sum(counts), HEADS, DIM)).astype(np.float32)
    numbers = np.cumsum([0, *counts]).astype(np.int32), np.array(lengths, np.int32), tables
    got = ops.paged_attention(place(queries), cache, *map(place, numbers), 0.25)
    return got.numpy(), queries, contents


EACH = {
    **{f"linear {dtype}": lambda x, dtype=dtype: weight_of(dtype)[1](x) for dtype in FORMATS},
    "silu_gate": ops.silu_gate,
    "rms_norm": lambda x: ops.rms_norm(x, paddle.ones([IN]), 1e-6),
    "add_rms_norm": lambda x: ops.add_rms_norm(x, x, paddle.ones([IN]), 1e-6)[1],
    "take_rows": lambda x: ops.take_rows(x, paddle.arange(x.shape[0])),
    "argmax": ops.argmax,
    "to_float32": ops.to_float32,
}


@pytest.mark.parametrize("name", EACH)
def test_no_rows(name):
    assert EACH[name](paddle.zeros([0, IN])).shape[0] == 0


@pytest.mark.parametrize("name", EACH)
def test_a_view_is_what_it_shows(name, rng):
    """Every second row, and a transposed matrix: their numbers do not lie side by side."""
    whole = place(rng.normal(size=(IN, 10)).astype(np.float32))
    for view in (whole.T, place(rng.normal(size=(10, IN)).astype(np.float32))[::2]):
        expected = EACH[name](view.clone().contiguous())
        np.testing.assert_array_equal(EACH[name](view).numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", FORMATS)
def test_products_of_4097_tokens(dtype, rng):
    numbers, product = weight_of(dtype)
    # Every format holds these, relative to the row's largest, nearly or exactly.
    x = rng.choice(np.float32([-8, -4, -1, 0, 2, 4]), (4097, IN))
    x[:, 0] = 8
    got = product(place(x)).numpy()
    np.testing.assert_allclose(got, x.astype(np.float64) @ numbers.T, rtol=1e-5, atol=0.05)


def test_attention_of_4097_tokens(rng):
    got, queries, ((keys, values),) = attend(rng, [4097], [4097])
    for first in (0, 1000, 4090):
        rows = slice(first, first + 7)
        seen = first + 7
        expected = reference64.attention(queries[rows], keys[:seen], values[:seen], 0.25)
        np.testing.assert_allclose(got[rows], expected.reshape(7, -1), rtol=1e-5, atol=1e-5)


def test_threads_change_no_bit(version):
    """Of what the native operators compute; Paddle's own add up as the threads divide it."""
    if version == "reference":
        pytest.skip("Paddle's products add in an order that depends on the threads")

    def compute():
        rng = np.random.default_rng(9)
        x = place(rng.normal(size=(37, IN)).astype(np.float32))
        attended = attend(rng, [1, 19, 3], [40, 19, 90])[0]
        settings = [paddle.full([37], value) for value in (0.9, 1.0, 0.0, 0.5)]
        temperature, top_p, min_p, uniform = settings
        limit = paddle.full([37], 5, "int64")
        drawn = ops.sample(x, temperature, limit, top_p, min_p, uniform, 5)
        # Of few rows threads take what is left of a product from each other.
        rest = (call(rows).numpy() for call in EACH.values() for rows in (x, x[:3]))
        return [attended, drawn.numpy(), *rest]

    results = []
    try:
        for threads in (1, 2, 3):
            import_paddle(threads)
            results.append(compute())
    finally:
        import_paddle()  # which sets the number for the whole process
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, same)
