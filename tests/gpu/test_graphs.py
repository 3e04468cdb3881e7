"""Recorded steps, and memory while and after they are recorded."""

import numpy as np
import paddle
import pytest

from gpu.tools import back, card, rounded
from qinfer.core.errors import Unsupported
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.cuda import empty
from qinfer.cuda_ops.cuda_bandwidth import read_bandwidth
from qinfer.cuda_ops.graphs import Card, Graph, view


def chain(x, weights):
    for weight in weights:
        x = ops.silu_gate(ops.linear(x, weight, None, "bfloat16", 128))
    return x


def test_the_device_reads_what_bandwidth_is_measured_with(library):
    assert read_bandwidth(Card(library, 0)) > 0


def test_a_graph_follows_its_inputs(library, rng):
    weights = [card(rounded(rng.normal(size=(128, 64)) / 8, "bfloat16")) for _ in range(6)]
    kept = Card(library, 0)
    x = card(rounded(rng.normal(size=(4, 64)), "bfloat16"))
    chain(x, weights)
    kept.wait()
    graph = Graph(kept, lambda: chain(x, weights))
    assert graph.size >= 12
    for _ in range(3):
        fresh = card(rounded(rng.normal(size=(4, 64)), "bfloat16"))
        kept.copy(x.data_ptr(), fresh.data_ptr(), 4 * 64 * 2)
        expected = back(chain(fresh, weights))
        others = [chain(fresh, weights) for _ in range(5)]  # may not share the graph's memory
        graph.replay()
        kept.wait()
        np.testing.assert_array_equal(back(graph.result), expected)
        for other in others:
            np.testing.assert_array_equal(back(other), expected)


def test_recordings_share_what_they_do_not_return(library, rng):
    kept = Card(library, 0)
    weights = [card(rounded(rng.normal(size=(128, 64)), "bfloat16")) for _ in range(4)]
    x = card(rounded(rng.normal(size=(8, 64)), "bfloat16"))
    chain(x, weights)
    kept.wait()
    first = Graph(kept, lambda: chain(x, weights))
    _, peak, _ = kept.usage()
    graphs = [Graph(kept, lambda: chain(x, weights)) for _ in range(5)]
    _, later, _ = kept.usage()
    assert later - peak <= 5 * 1024
    del first, graphs


def test_views_share_memory(library):
    buffer = empty([64], "uint8", 0)
    numbers, tail = view(buffer, 0, [4], "int64"), view(buffer, 32, [2, 4], "int32")
    values = np.arange(16, dtype=np.int32)
    source = paddle.to_tensor(values)
    kept = Card(library, 0)
    kept.copy(buffer.data_ptr(), source.data_ptr(), 64)
    kept.wait()
    np.testing.assert_array_equal(tail.numpy(), values[8:].reshape(2, 4))
    np.testing.assert_array_equal(numbers.numpy(), values[:8].view(np.int64))


def test_running_out_of_memory_is_an_error_and_not_the_end(rng):
    with pytest.raises(Unsupported, match="1048576 MiB do not fit into the memory of gpu:0"):
        empty([1 << 40], "uint8", 0)
    assert back(card(rounded(rng.normal(size=8), "bfloat16"))).shape == (8,)
