"""Decoding steps that are replayed: when, with what, and when not."""

import numpy as np
import paddle
import pytest

from qinfer.core.errors import Unsupported
from qinfer.core.hardware.place import place
from qinfer.core.types import LayerCache, StepInput
from qinfer.cuda_ops import ops, table
from qinfer.cuda_ops.build import build, plan_build
from qinfer.cuda_ops.native import CPU, load
from qinfer.cuda_ops.record import Recorder
from qinfer.plugins.backends.recorded import MOST, Logits, RecordedSteps

HEADS, DIM, BLOCKS = 2, 16, 12


@pytest.fixture
def recorder():
    try:
        load(library := build(plan_build()))
    except Unsupported as error:
        pytest.skip(str(error))
    table.use(CPU)
    yield Recorder(library)
    table.use(table.REFERENCE)


class Model:
    """One layer of attention over numbers that only the tokens decide; counts its eager calls."""

    def __init__(self, outside=None):
        rng = np.random.default_rng(0)
        width = 3 * HEADS * DIM
        self.table = place(rng.normal(size=(50, width)).astype(np.float32))
        self.rotary = place(rng.normal(size=(BLOCKS * 16, 2 * DIM)).astype(np.float32))
        keys, values = (paddle.zeros([BLOCKS, 16, HEADS, DIM]) for _ in range(2))
        self.cache = LayerCache(keys=keys, values=values)
        self.outside = outside or (lambda x: x)
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        qkv = self.outside(ops.embed(batch.token_ids, self.table, "float32"))
        queries = ops.rotary_kv_write(
            qkv, self.rotary, batch.positions, self.cache, batch.slot_mapping
        )
        mixed = ops.paged_attention(
            queries, self.cache, batch.query_starts, batch.seq_lens, batch.block_tables, 0.25
        )
        logits = ops.take_rows(mixed, batch.logit_rows)
        return Logits.of(logits, ops.argmax(logits))


def step(lengths, rng, new=1):
    """A step in which each sequence, now of that length, brings ``new`` tokens."""
    count = len(lengths)
    width = -(-max(lengths) // 16)
    tables = np.arange(count * width, dtype=np.int32).reshape(count, width)
    positions = np.concatenate([np.arange(n - new, n) for n in lengths])
    rows = np.repeat(np.arange(count), new)
    return StepInput(
        token_ids=rng.integers(0, 50, count * new),
        positions=positions,
        query_starts=np.arange(count + 1, dtype=np.int32) * new,
        seq_lens=np.array(lengths, np.int32),
        slot_mapping=tables[rows, positions // 16] * 16 + positions % 16,
        block_tables=tables,
        logit_rows=np.arange(1, count + 1) * new - 1,
    )


def steps_of(model, recorder):
    said = []
    return RecordedSteps(model, recorder, table_width=BLOCKS, give_up=said.append), said


def test_replays_give_what_eager_steps_give(recorder, rng):
    model, twin = Model(), Model()
    steps, said = steps_of(model, recorder)
    # Lengths grow past a block, so that the tables get wider; other sizes come in between.
    batches = [step([length], rng) for length in range(1, 40)]
    batches[20:20] = [step([5, 3], rng)] * 5
    batches[10:10] = [step([9, 30], rng, new=3), step([2, 2, 2], rng)]
    for batch in batches:
        same(steps(batch), twin(_placed(batch)))
    # One sequence: eager, recorded, checked; two: the same; three; a prompt: noted, checked.
    assert (model.calls, said) == (3 + 3 + 1 + 2, [])


def same(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def _placed(batch):
    return StepInput(**{name: place(value) for name, value in vars(batch).items()})


@pytest.mark.parametrize(
    "outside", [lambda x: x * 2, lambda x: x.scale_(2.0)], ids=["new", "in place"]
)
def test_a_model_that_leaves_the_table_is_not_replayed(recorder, rng, outside):
    model = Model(outside)
    steps, said = steps_of(model, recorder)
    twin = Model(lambda x: x * 2)
    for length in range(1, 10):
        batch = step([length], rng)
        same(steps(batch), twin(_placed(batch)))
    assert (model.calls, len(said)) == (9, 1)
    assert "not replayed" in said[0]


def test_prompts_are_noted_and_run_in_parts_once_a_replay_was_right(recorder, rng, monkeypatch):
    """Longer than a part, so that one part reads what another wrote."""
    monkeypatch.setattr("qinfer.plugins.backends.recorded.PART", 2)
    model, twin = Model(), Model()
    steps, _ = steps_of(model, recorder)
    for length in (1, 2, 3):
        batch = step([length], rng)
        same(steps(batch), twin(_placed(batch)))
        assert steps.has_replayed == (length == 3)
    for new in (5, 20, 5, 19):  # the first of a kind is computed in the ordinary way too
        batch = step([40, 33], rng, new=new)
        same(steps(batch), twin(_placed(batch)))
    assert steps.defers
    assert len(steps.trusted_prompts) == 2


def test_layers_that_leave_the_table_for_many_tokens_are_found_out(recorder, rng):
    model, twin = (Model(lambda x: x * 2 if len(x) > 8 else x) for _ in range(2))
    steps, _ = steps_of(model, recorder)
    batches = [step([length], rng) for length in (1, 2, 3)]
    batches += [step([30], rng, new=new) for new in (7, 8, 9, 20, 4)]
    batches += [step([4, 4], rng)] * 4 + [step([30], rng, new=20)]
    for batch in batches:
        same(steps(batch), twin(_placed(batch)))
    assert steps.has_replayed
    assert not steps.defers


def test_only_so_many_sizes_are_kept(recorder, rng):
    steps, _ = steps_of(Model(), recorder)
    for count in range(1, MOST + 4):
        for _ in range(3):
            steps(step([1] * count, rng))
    assert list(steps.by_size) == list(range(4, MOST + 4))
