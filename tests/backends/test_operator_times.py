"""A step taken apart into its operators, without a card."""

import numpy as np
import paddle
import pytest

from qinfer.core.errors import UsageError
from qinfer.core.measure.floor import decoding_step, operator_records
from qinfer.core.types import CacheSpec, LayerCache
from qinfer.cuda_ops import ops, table
from qinfer.plugins.backends import operator_times as module
from qinfer.plugins.backends.operator_times import operator_times

LAYERS, WIDTH, HEADS, DIM, BLOCK = 3, 32, 2, 16, 16


class Card:
    def wait(self):
        pass


class Graph:
    def __init__(self, card, call):
        call()
        self.replay = call


class Linear:
    def __init__(self, rng):
        self.weight = paddle.to_tensor(rng.normal(size=(WIDTH, 3 * HEADS * DIM)).astype("float32"))

    def __call__(self, x):
        return ops.linear(x, self.weight, None, "float32", self.weight.shape[1])


@pytest.fixture
def step(rng, monkeypatch):
    monkeypatch.setattr(module, "Graph", Graph)
    table.use(table.REFERENCE)
    layers = [Linear(rng) for _ in range(LAYERS)]
    vocabulary = paddle.to_tensor(rng.normal(size=(500, WIDTH)).astype("float32"))
    rotary = paddle.ones([64, 2 * DIM])
    slots = [20, BLOCK, HEADS, DIM]
    caches = [LayerCache(keys=paddle.zeros(slots), values=paddle.zeros(slots)) for _ in layers]

    def run(batch):
        x = ops.embed(batch.token_ids, vocabulary, "float32")
        for layer, cache in zip(layers, caches, strict=True):
            qkv, x = ops.norm_linear(None, x, paddle.ones([WIDTH]), 1e-6, layer)
            ops.attend(qkv, rotary, batch, cache, 0.25)

    return run


def test_calls_and_bytes(step):
    spec = CacheSpec(
        num_layers=LAYERS, num_kv_heads=HEADS, head_dim=DIM, block_size=BLOCK, num_blocks=20
    )
    runner = type("Runner", (), {})()
    runner.operator_times = lambda batch: operator_times(
        lambda: step(placed(batch)), Card(), int(batch.seq_lens.sum())
    )
    found = {one["operator"]: one for one in operator_records(runner, spec, 4, 40, 1e9)}
    assert {name: one["calls"] for name, one in found.items()} == {
        "embed": 1, "norm_linear": LAYERS, "attend": LAYERS,
    }  # fmt: skip
    wide = 3 * HEADS * DIM
    numbers = {
        "embed": 2 * 4 * WIDTH,
        "norm_linear": 4 * WIDTH + WIDTH + WIDTH * wide + 4 * wide + 4 * WIDTH,
        "attend": 4 * wide + 4 * 40 * 2 * HEADS * DIM + 4 * HEADS * DIM,
    }
    assert {name: round(one["floor_seconds"] * 1e9) for name, one in found.items()} == {
        name: 4 * count for name, count in numbers.items()
    }
    assert all(one["seconds"] > 0 for one in found.values())
    assert ops.embed.run is ops.embed.versions["reference"]  # the table is as before


def placed(batch):
    return type(batch)(**{name: paddle.to_tensor(value) for name, value in vars(batch).items()})


def test_the_step_of_a_case():
    spec = CacheSpec(num_layers=1, num_kv_heads=1, head_dim=8, block_size=BLOCK, num_blocks=20)
    batch = decoding_step(spec, 3, 33)
    assert batch.block_tables.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    np.testing.assert_array_equal(batch.slot_mapping, [2 * BLOCK, 5 * BLOCK, 8 * BLOCK])
    np.testing.assert_array_equal(batch.seq_lens, [33] * 3)


def test_a_program_s_operators_are_not_seen(rng):
    logits = paddle.to_tensor(rng.normal(size=(2, 9)).astype("float32"))
    with pytest.raises(UsageError, match="exported program"):
        operator_times(lambda: ops.argmax(logits), Card(), 4)
