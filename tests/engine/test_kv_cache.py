from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from qinfer.core.engine.kv_cache import EMPTY, BlockPool

BLOCKS = 6


class Pool(RuleBasedStateMachine):
    """Random callers against a model that only counts."""

    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.count = Counter()
        self.registered = {}  # (before, tokens) -> (block, content), as long as it must be found

    @rule(target=held)
    def allocate(self):
        if self.pool.num_free == 0:
            with pytest.raises(KeyError):
                self.pool.allocate()
            return multiple()
        block = self.pool.allocate()
        assert self.count[block] == 0, "a block in use was handed out"
        self.registered = {k: v for k, v in self.registered.items() if v[0] != block}
        self.count[block] += 1
        return block

    @rule(block=held, target=held)
    def share(self, block):
        self.pool.acquire(block)
        self.count[block] += 1
        return block

    @rule(block=consumes(held))
    def release(self, block):
        self.pool.release([block])
        self.count[block] -= 1

    @rule(block=held, before=st.integers(0, 3), token=st.integers(0, 2))
    def register(self, block, before, token):
        key = (before, (token,))
        if block in [found for found, _ in self.registered.values()]:
            return
        content = self.pool.register(block, *key)
        known = self.registered.setdefault(key, (block, content))
        assert known[1] == content

    @rule(before=st.integers(0, 3), token=st.integers(0, 2), target=held)
    def find(self, before, token):
        hit = self.pool.find(before, (token,))
        assert hit == self.registered.get((before, (token,)))
        if hit is None:
            return multiple()
        self.pool.acquire(hit[0])
        self.count[hit[0]] += 1
        return hit[0]

    @rule()
    def forget_all(self):
        self.pool.forget_all()
        self.registered = {}

    @invariant()
    def nothing_is_lost(self):
        assert self.pool.references == [self.count[block] for block in range(BLOCKS)]
        assert self.pool.num_free == sum(self.count[block] == 0 for block in range(BLOCKS))


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_releasing_what_is_not_held_is_an_error():
    pool = BlockPool(2)
    with pytest.raises(ValueError, match="not held"):
        pool.release([1])


def test_a_prefix_outlives_its_tail():
    """The blocks of a freed sequence are reused from its end."""
    pool = BlockPool(3)
    blocks = [pool.allocate() for _ in range(3)]
    first = pool.register(blocks[0], EMPTY, (1,))
    pool.register(blocks[1], first, (2,))
    pool.release(blocks)
    assert pool.allocate() == blocks[2]
    assert pool.allocate() == blocks[1]
    assert pool.find(EMPTY, (1,)) == (blocks[0], first)
    assert pool.find(first, (2,)) is None
