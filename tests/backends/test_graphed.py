"""The GPU's runner on a card that is made up: it does what is queued as late as it may."""

import ctypes
from typing import ClassVar

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer.core.engine.engine import Engine, Limits
from qinfer.core.params import SamplingParams
from qinfer.core.types import CacheSpec, RunConfig
from qinfer.cuda_ops import table
from qinfer.plugins.backends import graphed, step_buffer, step_graph
from qinfer.plugins.backends.dynamic import DynamicRunner
from qinfer.plugins.backends.graphed import GraphRunner

BLOCK, BLOCKS, VOCABULARY, END = 4, 60, 24, 7


class Card:
    """Work waits in a queue until somebody waits for it."""

    index = 0
    queue: ClassVar = []  # of the only card

    def wait(self):
        while self.queue:
            self.queue.pop(0)()

    def copy(self, to, source, size):
        self.queue.append(lambda: ctypes.memmove(to, source, size))

    def pinned(self, size):
        return np.full(size, 77, np.uint8)


class Mark:
    def __init__(self, card):
        self.card, self.at = card, None

    def set(self):
        self.at = lambda: None
        self.card.queue.append(self.at)

    def wait(self):
        while self.at in self.card.queue:
            self.card.queue.pop(0)()


class Graph:
    """What a call returns stays where it was at first."""

    def __init__(self, card, call):
        self.card, self.call = card, call
        self.arrays = [np.array(part.numpy()) for part in call()]
        self.result = tuple(paddle.from_dlpack(array) for array in self.arrays)

    def replay(self):
        self.card.queue.append(self.run)
        return self.result

    def run(self):
        for array, part in zip(self.arrays, self.call(), strict=True):
            np.copyto(array, part.numpy())


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    arrays = {}
    table.use(table.REFERENCE)
    # The model is none that a recording could replay.
    monkeypatch.setattr("qinfer.plugins.backends.dynamic.operator_recorder", lambda: None)

    def empty(shape, dtype, device):
        array = np.zeros(shape, dtype)
        tensor = paddle.from_dlpack(array)
        arrays[tensor.data_ptr()] = array
        return tensor

    def view(buffer, offset, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        part = arrays[buffer.data_ptr()][offset : offset + size]
        return paddle.from_dlpack(part.view(dtype).reshape(shape))

    monkeypatch.setattr(step_buffer, "empty", empty)
    monkeypatch.setattr(step_buffer, "view", view)
    monkeypatch.setattr(step_graph, "Graph", Graph)
    monkeypatch.setattr(graphed, "Mark", Mark)
    kept = []

    def in_turn(name):
        call = getattr(graphed, name)

        def after_all_before(*args, **options):
            Card().wait()
            kept.append(call(*args, **options))  # a card uses memory again in its turn, too
            return kept[-1]

        monkeypatch.setattr(graphed, name, after_all_before)

    for name in ("edit_logits", "sample", "argmax", "token_logprobs"):
        in_turn(name)


class Model:
    """Remembers the token in each slot; logits depend on all that a sequence's table leads to."""

    def __init__(self):
        self.slots = {}

    def __call__(self, batch, cache):
        tokens, positions, starts, lengths, slots, tables, wanted = (
            part.numpy().copy()
            for part in (
                batch.token_ids,
                batch.positions,
                batch.query_starts,
                batch.seq_lens,
                batch.slot_mapping,
                batch.block_tables,
                batch.logit_rows,
            )
        )
        for token, at, slot in zip(tokens, positions, slots, strict=True):
            if slot >= 0:
                self.slots[int(slot)] = (int(token), int(at))
        logits = np.zeros((len(wanted), VOCABULARY), np.float32)
        for row, at in enumerate(wanted):
            owner = int(np.searchsorted(starts, at, side="right")) - 1
            if owner >= len(lengths) or not lengths[owner]:
                continue
            places = range(int(lengths[owner]) - (int(starts[owner + 1]) - 1 - int(at)))
            seen = [self.slots[int(tables[owner][i // BLOCK]) * BLOCK + i % BLOCK] for i in places]
            assert [at for _, at in seen] == list(places)
            rng = np.random.default_rng([token for token, _ in seen])
            logits[row] = rng.normal(size=VOCABULARY) * 3
        return paddle.to_tensor(logits)


class Quiet:
    def text_stream(self):
        return self

    def push(self, token):
        return ""

    finish = token_text = lambda self, *_: ""

    def step_done(self, stats):
        pass

    request_done = step_done


def play(runner, requests, most, tokens):
    limits = Limits(max_model_len=BLOCK * 10, vocab_size=VOCABULARY, eos_token_ids=frozenset({END}))
    run = RunConfig(max_batch_tokens=tokens, max_num_seqs=most)
    engine = Engine(runner, spec(), run, limits, Quiet(), Quiet())
    said, pending, steps = {}, list(requests), 0
    while engine.has_work or pending:
        if pending and steps % 3 == 0:
            prompt, options = pending.pop(0)
            params = SamplingParams(**options).with_defaults({})
            said[engine.add(prompt, params)] = []
        for request, delta in engine.step():
            chances = [round(p.logprob, 4) for p in delta.logprobs or ()]
            said[request].append((delta.token_ids, chances))
        steps += 1
    return said


def spec():
    return CacheSpec(num_layers=0, num_kv_heads=1, head_dim=64, block_size=BLOCK, num_blocks=BLOCKS)


def graph_runner(most):
    card, model = Card(), Model()
    card.queue.clear()  # what the last runner left copies to and from memory that went with it

    def in_turn(batch, cache):
        if batch.token_ids.data_ptr() not in inputs():
            card.wait()  # outside of a graph
        return model(batch, cache)

    def inputs():
        return {g.inputs.tensors.token_ids.data_ptr() for g in runner.graphs.values()}

    runner = GraphRunner(in_turn, spec(), card, max_blocks=10, most=most, note=lambda _: None)
    return runner


OPTIONS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 16),
        "temperature": st.sampled_from([0.0, 0.0, 0.9]),
        "top_k": st.sampled_from([0, 5]),
        "seed": st.integers(0, 9),
        "logprobs": st.sampled_from([None, None, None, 2]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.0, 1.3]),
    }
)
REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=12), OPTIONS),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, most=st.integers(1, 5), tokens=st.sampled_from([5, 64]))
def test_answers_are_those_of_the_plain_runner(requests, most, tokens):
    """With 5 tokens a step, prompts go in pieces: the first step may choose nothing."""
    expected = play(DynamicRunner(Model(), spec(), max_blocks=10), requests, most, tokens)
    assert play(graph_runner(most), requests, most, tokens) == expected
