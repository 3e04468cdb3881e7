"""Steps made ready in advance: the same as those the scheduler makes, whatever happens between."""

import numpy as np
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
        self.prepared = 0

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

    def step_while(self, batch, sampling, meanwhile):
        output = self.step(batch, sampling)
        meanwhile()
        return output

    def close(self):
        pass


class Plain:
    """The same, of a device that does not compute by itself."""

    def __init__(self):
        memory = Memory()
        self.step, self.close = memory.step, memory.close


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
            prompt, tokens, temperature = pending.pop(0)
            params = SamplingParams(max_tokens=tokens, temperature=temperature, seed=len(prompt))
            said[engine.add(prompt, params.with_defaults({}))] = []
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
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.integers(12, 40), st.integers(0, 8))
def test_answers_are_the_same_with_steps_made_ready(requests, blocks, aborted):
    ready = play(Memory(), requests, blocks, aborted)
    assert ready == play(Plain(), requests, blocks, aborted)
