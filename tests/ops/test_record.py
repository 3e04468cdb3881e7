"""Recorded operators: a replay computes what an eager call would, on what the inputs hold then."""

import gc
from functools import partial

import numpy as np
import paddle
import pytest

from qinfer.core.hardware.place import place
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.build import build, plan_build
from qinfer.cuda_ops.record import Recorder, Recording

HIDDEN, INTER, VOCABULARY = 64, 96, 5000


@pytest.fixture
def recorder(version):
    if version == "reference":
        pytest.skip("Paddle's own operators are not recorded")
    return Recorder(build(plan_build()))


class Network:
    """Every operator but attention, in the shape of a decoder layer."""

    def __init__(self, rng):
        def weight(out, width):
            return place(rng.normal(size=(out, width)).astype(np.float32))

        self.table = weight(VOCABULARY, HIDDEN).astype("bfloat16")
        self.norm = place(rng.normal(size=HIDDEN).astype(np.float32))
        self.gate_up = ops.arrange(weight(2 * INTER, HIDDEN), "float32")
        self.down = ops.arrange(weight(HIDDEN, INTER).astype("bfloat16"), "float32")
        self.head = ops.arrange(
            place(rng.integers(-127, 128, (VOCABULARY, HIDDEN)).astype(np.int8)), "float32"
        )
        self.scale = place(rng.uniform(0.01, 0.02, VOCABULARY).astype(np.float32))

    def __call__(self, ids, rows):
        residual = ops.embed(ids, self.table, "float32")
        x = ops.rms_norm(residual, self.norm, 1e-6)
        for _ in range(3):
            gated = ops.silu_gate(ops.linear(x, self.gate_up, None, "float32", 2 * INTER))
            delta = ops.linear(gated, self.down, None, "bfloat16", HIDDEN)
            x, residual = ops.add_rms_norm(delta, residual, self.norm, 1e-6)
        logits = ops.linear_int8(ops.take_rows(x, rows), self.head, self.scale, None)
        return ops.argmax(logits), ops.to_float32(logits)


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_a_replay_is_an_eager_call(recorder, tokens, rng):
    network = Network(rng)
    ids, rows = np.zeros(tokens, np.int64), np.arange(tokens)
    inputs = place(ids), place(rows)
    recording = Recording(recorder, lambda: network(*inputs))
    # embed, norm, take_rows, head, argmax, and four in each of three rounds
    assert recording.size == 5 + 3 * 4
    for _ in range(3):
        ids[:] = rng.integers(0, VOCABULARY, tokens)
        rows[:] = rng.permutation(tokens)
        best, logits = (part.numpy().copy() for part in recording.replay())
        expected = network(place(ids.copy()), place(rows.copy()))
        np.testing.assert_array_equal(best, expected[0].numpy())
        np.testing.assert_array_equal(logits, expected[1].numpy())


def test_a_deferred_recording_computes_nothing_before_its_replay(recorder, rng):
    network = Network(rng)
    ids = np.zeros(3, np.int64)
    inputs = place(ids), place(np.arange(3))
    noted = Recording(recorder, lambda: network(*inputs), is_deferred=True)
    ids[:] = 7, 8, 9  # seen by whatever runs from here on
    expected = network(place(ids.copy()), place(np.arange(3)))
    for one, other in zip(noted.replay_in_parts(4), expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_what_is_read_stays_and_the_result_too(recorder, rng):
    """The recording is all that holds the network, then its result all that holds the memory."""
    ids = np.zeros(2, np.int64)
    networks = [Network(rng)]
    call = partial(networks[0], place(ids), place(np.arange(2)))
    recording = Recording(recorder, call)
    ids[:] = 17, 4999
    expected = networks.pop()(place(ids.copy()), place(np.arange(2)))[1].numpy()
    del call
    gc.collect()
    garbage = [paddle.full([300, 300], float("nan")) for _ in range(50)]
    result = recording.replay()[1]
    np.testing.assert_array_equal(result.numpy(), expected)
    del recording, garbage
    gc.collect()
    np.testing.assert_array_equal(result.numpy(), expected)


def test_results_share_memory_once_dropped(recorder):
    """The arena takes back what a layer leaves, as a replay may overwrite it then."""
    x = place(np.ones((4, 512), np.float32))
    addresses = []

    def call():
        for _ in range(6):
            y = ops.silu_gate(x)
            addresses.append(y.data_ptr())
            del y

    Recording(recorder, call)
    assert len(set(addresses)) == 1


def test_an_error_ends_the_recording(recorder):
    x = place(np.ones((4, 512), np.float32))
    with pytest.raises(ZeroDivisionError):
        Recording(recorder, lambda: (ops.silu_gate(x), 1 // 0))
    assert Recording(recorder, lambda: None).size == 0
    ops.silu_gate(x)  # no longer recorded, by whatever was left on
    assert Recording(recorder, lambda: ops.silu_gate(x)).size == 1
