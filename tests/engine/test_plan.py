"""Steps begun before the one before is over: the same answers as without, whatever happens."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer.core.engine.engine import Engine, Limits
from qinfer.core.engine.sizing import choose_sizes
from qinfer.core.params import SamplingParams
from qinfer.core.types import CacheSpec, RunConfig, StepOutput

BLOCK = 4


class Memory:
    """A runner whose cache holds tokens. The next token depends on all that a sequence's tables
    lead to, on its positions, and on its row of the sampling parameters.
    """

    def __init__(self):
        self.slots = {}

    def step(self, batch, sampling):
        for token, slot, at in zip(
            batch.token_ids, batch.slot_mapping, batch.positions, strict=True
        ):
            self.slots[int(slot)] = (int(token), int(at))
        chosen = []
        for row in batch.logit_rows:
            owner = int(np.searchsorted(batch.query_starts, row, side="right")) - 1
            length = int(batch.seq_lens[owner]) - (int(batch.query_starts[owner + 1]) - 1 - row)
            table = batch.block_tables[owner]
            seen = [self.slots[int(table[i // BLOCK]) * BLOCK + i % BLOCK] for i in range(length)]
            assert [at for _, at in seen] == list(range(length))
            draw = sampling.uniform[len(chosen)]
            chosen.append(hash((tuple(token for token, _ in seen), float(draw))) % 50)
        return StepOutput(token_ids=np.array(chosen, np.int64))

    def close(self):
        pass


class Device(Memory):
    """The same, which goes on by itself: of its steps, those numbered in ``unable`` cannot begin
    before their tokens are known.
    """

    def __init__(self, unable=()):
        super().__init__()
        self.unable, self.asked, self.ahead, self.last = unable, 0, 0, None

    def begin(self, batch, sampling, rows=None):
        choose = self.compute(batch, rows)
        return choose and choose(sampling)

    def compute(self, batch, rows=None):
        self.asked += rows is not None
        if rows is not None and self.asked in self.unable:
            return None
        if rows is not None:
            self.ahead += 1
            tokens, known = batch.token_ids.copy(), rows < 0
            tokens[~known] = self.last[rows[~known]]
            batch = replace(batch, token_ids=tokens)

        def choose(sampling):
            output = self.step(batch, sampling)
            self.last = output.token_ids
            return lambda: output

        return choose


class Quiet:
    def text_stream(self):
        return self

    def push(self, token):
        return ""

    finish = str

    def step_done(self, stats):
        pass

    request_done = step_done


def play(runner, requests, blocks, aborted):
    """All answers; request number ``aborted`` is dropped after some steps."""
    limits = Limits(max_model_len=40, vocab_size=50, eos_token_ids=frozenset({7}))
    cache = CacheSpec(num_layers=1, num_kv_heads=1, head_dim=8, block_size=BLOCK, num_blocks=blocks)
    run = choose_sizes(RunConfig(max_batch_tokens=12, max_num_seqs=4), "cpu")
    engine = Engine(runner, cache, run, limits, Quiet(), Quiet())
    said, steps = {}, 0
    pending = list(requests)
    while engine.has_work or pending:
        if pending and (steps % 3 == 0 or not engine.has_work):
            prompt, tokens, temperature, least = pending.pop(0)
            params = SamplingParams(
                max_tokens=tokens,
                temperature=temperature,
                seed=len(prompt),
                min_tokens=min(least, tokens),
            )
            said[engine.add(prompt, params.with_defaults({}))] = []
        with suppress(KeyboardInterrupt):
            for request, delta in engine.step():
                said[request].extend(delta.token_ids)
        steps += 1
        if steps == 9:
            engine.abort(aborted)
    assert engine.pool.num_free == blocks
    said.pop(aborted, None)
    return said


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=14),
        st.integers(1, 20),
        st.sampled_from([0.0, 0.8]),
        st.sampled_from([0, 0, 0, 5]),  # a minimum of tokens edits the logits
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(REQUESTS, st.integers(12, 40), st.integers(0, 8), st.sets(st.integers(1, 40), max_size=5))
def test_answers_are_the_same_with_steps_begun_ahead(requests, blocks, aborted, unable):
    ahead = play(Device(unable), requests, blocks, aborted)
    assert ahead == play(Memory(), requests, blocks, aborted)


@pytest.mark.parametrize("least", [0, 3], ids=["free", "with edits of the logits"])
def test_decoding_is_begun_ahead(least):
    """All of it but the first step, and none that no sequence would go on in."""
    device = Device()
    play(device, [([1, 2, 3], 6, 0.8, least)], 12, 0)
    assert device.ahead == 5


def test_a_failed_step_is_computed_again():
    """And so is the one begun after it."""
    expected = play(Memory(), [([1, 2], 8, 0.8, 0)], 12, 0)
    device = Device()
    fresh, failing = device.begin, [4]

    def begin(batch, sampling, rows=None):
        finish = fresh(batch, sampling, rows)
        failing[0] -= 1
        if failing[0]:
            return finish
        return lambda: (_ for _ in ()).throw(KeyboardInterrupt)

    device.begin = begin
    assert play(device, [([1, 2], 8, 0.8, 0)], 12, 0) == expected
