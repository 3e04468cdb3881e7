"""Blocks of the paged KV cache: who holds them, and which content can be shared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

EMPTY = 0
"""Content id of the empty prefix; negative ones are those of empty prefixes of another kind."""


class BlockPool:
    """Hands out block numbers 0 to num_blocks - 1 and counts references.

    A full block may be registered under (content of the blocks before it, its own tokens), which
    identifies its keys and values exactly, with no hash collisions. A freed block keeps its
    content, and may be acquired again by it, until the block is needed for something else; the
    longest unused goes first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.references = [0] * num_blocks
        # An ordered set: the first is reused next. A dict looks for its first key from where keys
        # were once deleted, which took longer with every block.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[tuple[int, tuple[int, ...]], int] = {}
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._content_of: dict[int, int] = {}
        self._next_content = EMPTY + 1

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def allocate(self) -> int:
        """Take the block that has been free the longest, forgetting its content.

        Raises KeyError when none is free: callers look at ``num_free`` first.
        """
        if not self._free:
            raise KeyError("no free KV block")
        block = next(iter(self._free))
        self._forget(block)
        self.acquire(block)
        return block

    def acquire(self, block: int) -> None:
        """Hold a block once more."""
        self._free.pop(block, None)
        self.references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each; the last block is reused first, so prefixes live longest."""
        for block in reversed(blocks):
            if self.references[block] <= 0:
                raise ValueError(f"KV block {block} is released but not held")
            self.references[block] -= 1
            if self.references[block] == 0:
                self._free[block] = None

    def register(self, block: int, before: int, tokens: tuple[int, ...]) -> int:
        """Offer a full block for sharing; returns the content id of the prefix it ends.

        If the same content is already offered by another block, that one stays the shared one.
        """
        key = (before, tokens)
        if key in self._block_of:
            return self._content_of[self._block_of[key]]
        content, self._next_content = self._next_content, self._next_content + 1
        self._block_of[key], self._key_of[block] = block, key
        self._content_of[block] = content
        return content

    def find(self, before: int, tokens: tuple[int, ...]) -> tuple[int, int] | None:
        """The block with that content and the content id of the prefix it ends, or None."""
        block = self._block_of.get((before, tokens))
        return None if block is None else (block, self._content_of[block])

    def is_free(self, block: int) -> bool:
        """Whether nobody holds the block."""
        return block in self._free

    def forget_all(self) -> None:
        """Offer nothing for sharing any more; who holds which block stays as it is."""
        self._block_of.clear()
        self._key_of.clear()
        self._content_of.clear()

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key], self._content_of[block]
