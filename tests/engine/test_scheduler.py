"""Random workloads through the scheduler, against what must hold after every step."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer.core.engine.kv_cache import BlockPool
from qinfer.core.engine.scheduler import Scheduler
from qinfer.core.engine.sequence import Sequence
from qinfer.core.params import SamplingParams

BLOCK = 4


def sequence(number, prompt, max_tokens=4):
    return Sequence(
        request_id=number,
        index=0,
        prompt=list(prompt),
        params=SamplingParams(),
        seed=0,
        max_tokens=max_tokens,
        eos_token_ids=frozenset(),
        # Keys of short and of long prompts are rotated differently, and must not be shared.
        first_row=1000 * (len(prompt) > 9),
    )


class Cache:
    """What each slot of the cache holds: all its key and value depend on."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.slots = {}

    def run(self, chunks):
        """Write every chunk, then check that every sequence reads exactly its own prefix."""
        for chunk in chunks:
            for at in range(chunk.start, chunk.start + chunk.length):
                slot = self.slot(chunk.sequence, at)
                self.slots[slot] = self.content(chunk.sequence, at)
        for chunk in chunks:
            for at in range(chunk.start + chunk.length):
                expected = self.content(chunk.sequence, at)
                assert self.slots.get(self.slot(chunk.sequence, at)) == expected

    @staticmethod
    def content(seq, at):
        return seq.first_row, tuple(seq.tokens(0, at + 1))

    @staticmethod
    def slot(seq, at):
        return seq.blocks[at // BLOCK], at % BLOCK


def check_pool(scheduler, sequences):
    held = Counter(block for seq in sequences for block in seq.blocks)
    assert scheduler.pool.references == [held[b] for b in range(len(scheduler.pool.references))]
    for seq in sequences:
        assert len(seq.blocks) == len(set(seq.blocks))
        assert seq in scheduler.running or not seq.blocks


request = st.tuples(
    st.lists(st.integers(0, 1), min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 25)
)


@settings(max_examples=300, deadline=None)
@given(
    requests=st.lists(request, min_size=1, max_size=8),
    spare=st.integers(0, 12),
    max_seqs=st.integers(1, 5),
    budget=st.integers(1, 24),
    aborted=st.sets(st.integers(0, 7)),
)
def test_every_request_ends_and_reads_only_its_own_keys(requests, spare, max_seqs, budget, aborted):
    longest = max(len(prompt) + length for prompt, length, _ in requests)
    pool = BlockPool(-(-longest // BLOCK) + spare)
    scheduler = Scheduler(pool, BLOCK, max_seqs, budget)
    cache = Cache(scheduler)
    pending = [(at, sequence(i, p, n)) for i, (p, n, at) in enumerate(requests)]
    everyone = [seq for _, seq in pending]
    alive = set(everyone)
    for step in range(3000):
        for at, seq in [item for item in pending if item[0] <= step]:
            scheduler.add(seq)
            pending.remove((at, seq))
        chunks = scheduler.schedule()
        assert sum(chunk.length for chunk in chunks) <= budget
        assert len(scheduler.running) <= max_seqs
        assert all(chunk.length > 0 for chunk in chunks)
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        if not chunks and not pending:
            break
        cache.run(chunks)
        check_pool(scheduler, everyone)
        for chunk in chunks:
            seq = chunk.sequence
            if not chunk.is_last:
                continue
            seq.output.append((seq.request_id + len(seq.output)) % 2)
            if len(seq.output) == seq.max_tokens or (step > 10 and seq.request_id in aborted):
                scheduler.finish(seq)
                alive.discard(seq)
    assert not alive, "a request never ended"
    assert pool.num_free == len(pool.references), "blocks leaked"


def drive(scheduler, seq):
    """Run a lone sequence through its prompt; returns the chunk lengths."""
    lengths = []
    while True:
        (chunk,) = scheduler.schedule()
        lengths.append(chunk.length)
        if chunk.is_last:
            return lengths


def test_a_long_prompt_is_computed_in_chunks_of_the_budget():
    scheduler = Scheduler(BlockPool(8), BLOCK, 4, 7)
    scheduler.add(seq := sequence(0, range(20)))
    assert drive(scheduler, seq) == [7, 7, 6]


def test_decoding_goes_on_beside_a_chunked_prompt():
    scheduler = Scheduler(BlockPool(16), BLOCK, 4, 6)
    scheduler.add(first := sequence(0, [1, 2]))
    scheduler.schedule()
    first.output.append(3)
    scheduler.add(second := sequence(1, range(12)))
    steps = []
    for _ in range(3):
        steps.append({c.sequence.request_id: c.length for c in scheduler.schedule()})
        first.output.append(3)
    assert steps == [{0: 1, 1: 5}, {0: 1, 1: 5}, {0: 1, 1: 2}]
    assert second.num_computed == 12


def test_a_repeated_prompt_shares_its_full_blocks_at_once():
    scheduler = Scheduler(BlockPool(8), BLOCK, 4, 64)
    twins = [sequence(i, range(10)) for i in range(2)]
    for twin in twins:
        scheduler.add(twin)
    chunks = scheduler.schedule()
    assert [chunk.length for chunk in chunks] == [10, 2]
    assert twins[0].blocks[:2] == twins[1].blocks[:2]
    assert twins[0].blocks[2] != twins[1].blocks[2]
    assert twins[1].num_cached == 8


def test_the_last_token_is_computed_even_if_all_blocks_are_cached():
    scheduler = Scheduler(BlockPool(8), BLOCK, 4, 64)
    scheduler.add(first := sequence(0, range(8)))
    scheduler.schedule()
    scheduler.finish(first)
    scheduler.add(second := sequence(1, range(8)))
    (chunk,) = scheduler.schedule()
    assert (chunk.start, chunk.length) == (4, 4)
    assert second.num_cached == 4


@pytest.mark.parametrize("grown", [0, 1])
def test_the_last_to_arrive_is_preempted_and_starts_again(grown):
    scheduler = Scheduler(BlockPool(4), BLOCK, 4, 64)
    pair = [sequence(i, [i] * 8) for i in range(2)]
    for seq in pair:
        scheduler.add(seq)
    assert len(scheduler.schedule()) == 2
    pair[grown].output.append(5)
    pair[1 - grown].output.append(5)
    chunks = scheduler.schedule()
    assert [chunk.sequence for chunk in chunks] == [pair[0]]
    assert list(scheduler.waiting) == [pair[1]]
    assert (pair[1].blocks, pair[1].num_computed, pair[1].preemptions) == ([], 0, 1)
    scheduler.finish(pair[0])
    (chunk,) = scheduler.schedule()
    assert chunk.sequence is pair[1]
    # Its first block may have survived: 9 tokens less a whole number of blocks.
    assert chunk.start % BLOCK == 0
    assert chunk.is_last
