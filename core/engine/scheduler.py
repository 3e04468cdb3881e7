"""Which tokens of which sequences the next step computes."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from qinfer.core.engine.kv_cache import BlockPool
from qinfer.core.engine.sequence import Sequence


class Chunk(NamedTuple):
    """``length`` tokens of a sequence from position ``start`` on; part of one step. ``is_last``:
    it reaches the sequence's end, so that a next token can be chosen.
    """

    sequence: Sequence
    start: int
    length: int
    is_last: bool


class Scheduler:
    """Continuous batching: running sequences first, in order of arrival, then waiting ones.

    Long prompts are computed in chunks of what is left of the step's token budget. When blocks
    run out, the sequence that arrived last is preempted: it gives its blocks back and waits to be
    computed again. A sequence alone always fits (``LLM`` bounds its length), so each one ends.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, max_num_seqs: int, max_batch_tokens: int
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_num_seqs = min(max_num_seqs, max_batch_tokens)
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks and give them blocks; empty only if nothing is queued."""
        chunks: list[Chunk] = []
        budget = self.max_batch_tokens
        preempted = False
        for sequence in list(self.running):
            left = sequence.num_left
            length = left if left < budget else budget
            if length == 0 or (preempted and sequence not in self.running):
                continue
            missing = self._missing_blocks(sequence, sequence.num_computed + length)
            while missing and missing > self.pool.num_free and sequence in self.running:
                self.preempt(self.running[-1])
                preempted = True
            if not preempted or sequence in self.running:
                chunks.append(self._take(sequence, length, missing, length == left))
                budget -= length
        while self.waiting and not preempted and budget > 0:
            if len(self.running) >= self.max_num_seqs or not self._admit(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            length = min(sequence.num_left, budget)
            missing = self._missing_blocks(sequence, sequence.num_computed + length)
            chunks.append(self._take(sequence, length, missing, length == sequence.num_left))
            budget -= length
        return chunks

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it will be computed again from its start."""
        self._release(sequence)
        self.running.remove(sequence)
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended or was aborted, wherever it is."""
        self.offer_full_blocks(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence the cached blocks of its prefix, if all of it fits now.

        The last token is always computed: its logits are needed.
        """
        found: list[tuple[int, int]] = []
        before = sequence.root
        for start in range(0, sequence.num_tokens - self.block_size, self.block_size):
            hit = self.pool.find(before, tuple(sequence.tokens(start, start + self.block_size)))
            if hit is None:
                break
            found.append(hit)
            before = hit[1]
        total = -(-sequence.num_tokens // self.block_size)
        taken_from_free = sum(self.pool.is_free(block) for block, _ in found)
        if total - len(found) + taken_from_free > self.pool.num_free:
            return False
        for block, _ in found:
            self.pool.acquire(block)
        sequence.blocks = [block for block, _ in found]
        sequence.content, sequence.hashed = before, len(found)
        sequence.num_computed = len(found) * self.block_size
        if not sequence.preemptions:
            sequence.num_cached = sequence.num_computed
        return True

    def _take(self, sequence: Sequence, length: int, missing: int, is_last: bool) -> Chunk:
        """Allocate the ``missing`` blocks for the next ``length`` tokens and offer the full ones
        for sharing.

        They may be shared within this very step: in each layer all new keys and values are
        written before any are read.
        """
        start = sequence.num_computed
        sequence.num_computed = end = start + length
        for _ in range(missing):
            sequence.blocks.append(self.pool.allocate())
        if end >= (sequence.hashed + 1) * self.block_size:
            self.offer_full_blocks(sequence)
        return Chunk(sequence, start, length, is_last)

    def offer_full_blocks(self, sequence: Sequence) -> None:
        """Let other sequences share the blocks whose tokens are all known and computed."""
        known = min(sequence.num_computed, sequence.num_known)
        while (sequence.hashed + 1) * self.block_size <= known:
            start = sequence.hashed * self.block_size
            tokens = tuple(sequence.tokens(start, start + self.block_size))
            block = sequence.blocks[sequence.hashed]
            sequence.content = self.pool.register(block, sequence.content, tokens)
            sequence.hashed += 1

    def _missing_blocks(self, sequence: Sequence, tokens: int) -> int:
        missing = -(-tokens // self.block_size) - len(sequence.blocks)
        return missing if missing > 0 else 0

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.hashed = 0
        sequence.content = sequence.root
