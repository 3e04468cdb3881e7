"""Decoding steps of a size that comes again: recorded once, then replayed in one call.

An operator costs some 50 µs beside its work, in Python and Paddle, whose data the work has driven
out of the caches. So the operators of other steps, prompts', are noted first and then run in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from paddle import Tensor

from qinfer.core.hardware.place import place
from qinfer.core.types import StepInput
from qinfer.cuda_ops.record import Recorder, Recording


class Logits(NamedTuple):
    """Logits [R, vocab_size] float32, and each row's likeliest token [R] int64, twice: ``tokens``
    is the memory of ``best`` as numpy sees it, since asking Paddle for it takes 0.1 ms a step.
    """

    logits: Tensor
    best: Tensor
    tokens: NDArray[Any]

    @classmethod
    def of(cls, logits: Tensor, best: Tensor) -> Logits:
        """With that view."""
        return cls(logits, best, np.from_dlpack(best))

    def has_bits_of(self, other: Logits) -> bool:
        """Whether the numbers are the same to the last bit."""
        mine, others = (logits.numpy().view(np.int32) for logits in (self.logits, other.logits))
        return np.array_equal(mine, others) and np.array_equal(self.tokens, other.tokens)


MOST = 8
"""Recordings kept: of the batch sizes that came last."""

PART = 16
"""Operators of a prompt's step that run in one call: two layers, as Ctrl-C has to wait for them."""


@dataclass
class _Recorded:
    """A recording, and the buffers it reads: numpy arrays that share memory with its tensors."""

    buffers: StepInput
    recording: Recording[Logits]
    is_trusted: bool = False


class RecordedSteps:
    """Computes logits, through a recording where every sequence brings one token.

    The second step of a size is recorded and the third replayed, and also computed in the ordinary
    way: unless both give the same bits, recordings are given up, as a model that calls something
    beside operators would be replayed without it. Once that has held, steps of prompts are noted
    and run afterwards. A layer may compute many tokens by other means than one, so those are
    checked in the same way, once for each number of operators and power of two of tokens.
    """

    def __init__(
        self,
        model: Callable[[StepInput], Logits],
        recorder: Recorder,
        *,
        table_width: int,
        give_up: Callable[[str], None],
    ) -> None:
        """``table_width``: the most blocks a sequence can have. ``give_up``: told why, once."""
        self.model, self.recorder, self.table_width = model, recorder, table_width
        self.give_up: Callable[[str], None] | None = give_up
        self.by_size: dict[int, _Recorded] = {}
        self.last_size, self.has_replayed, self.defers = 0, False, True
        self.trusted_prompts: set[tuple[int, int, int]] = set()

    def __call__(self, batch: StepInput) -> Logits:
        """Numpy arrays in; what comes back is overwritten by the next call."""
        size = len(batch.token_ids)
        is_decode = size == len(batch.seq_lens) == len(batch.logit_rows)
        again, self.last_size = size == self.last_size, size if is_decode else 0
        if not is_decode and self.has_replayed and self.defers:
            return self._deferred(batch)
        if not is_decode or self.give_up is None:
            return self.model(on_device(batch))
        recorded = self.by_size.pop(size, None)
        if recorded is None:
            return self._record(batch) if again else self.model(on_device(batch))
        self.by_size[size] = recorded
        _copy(batch, recorded.buffers)
        result = recorded.recording.replay()
        return result if recorded.is_trusted else self._check(batch, recorded, result)

    def _record(self, batch: StepInput) -> Logits:
        size = len(batch.token_ids)
        tables = np.zeros((size, self.table_width), np.int32)
        arrays = {name: value.copy() for name, value in vars(batch).items()}
        buffers = replace(batch, **{**arrays, "block_tables": tables})
        _copy(batch, buffers)
        inputs = _map(buffers, place)
        recording = Recording(self.recorder, lambda: self.model(inputs))
        while len(self.by_size) >= MOST:
            del self.by_size[next(iter(self.by_size))]
        self.by_size[size] = _Recorded(buffers, recording)
        return recording.result

    def _deferred(self, batch: StepInput) -> Logits:
        inputs = on_device(batch)
        noted = Recording(self.recorder, lambda: self.model(inputs), is_deferred=True)
        result = noted.replay_in_parts(PART)
        tokens = len(batch.token_ids)
        kind = (noted.size, tokens.bit_length(), (tokens - 1).bit_length())
        if kind in self.trusted_prompts:
            return result
        expected = self.model(inputs)
        self.defers = result.has_bits_of(expected)
        self.trusted_prompts.add(kind)
        return expected

    def _check(self, batch: StepInput, recorded: _Recorded, replayed: Logits) -> Logits:
        expected = self.model(on_device(batch))
        self.has_replayed = recorded.is_trusted = replayed.has_bits_of(expected)
        if not recorded.is_trusted and self.give_up is not None:
            self.by_size.clear()
            self.give_up(
                "Steps are not replayed: the model computes with something beside the table's "
                "operators, which a recording does not hold"
            )
            self.give_up = None
        return expected


def on_device(inputs: StepInput) -> StepInput:
    """The same step with its numpy arrays as tensors."""
    return _map(inputs, place)


def _map(batch: StepInput, convert: Callable[[Any], Any]) -> StepInput:
    return replace(batch, **{name: convert(value) for name, value in vars(batch).items()})


def _copy(batch: StepInput, buffers: StepInput) -> None:
    """Into the buffers, what differs between steps of a size; of the block tables the columns that
    are used.
    """
    buffers.token_ids[:] = batch.token_ids
    buffers.positions[:] = batch.positions
    buffers.seq_lens[:] = batch.seq_lens
    buffers.slot_mapping[:] = batch.slot_mapping
    buffers.block_tables[:, : batch.block_tables.shape[1]] = batch.block_tables
