"""Sampling parameters as the arrays the sampling operators take."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Rows
from functools import lru_cache

import numpy as np

from qinfer.core.engine.edits import Edits
from qinfer.core.engine.sequence import Sequence
from qinfer.core.types import SamplingInput

_FLOATS = np.zeros(0, np.float32)
NO_EDITS = Edits(np.zeros(0, np.int64), _FLOATS, _FLOATS)


def sampling_input(sequences: Rows[Sequence]) -> SamplingInput:
    """One row for each sequence whose next token is to be chosen. Of one whose last token is not
    known yet the edits (``params.edits``) are not right.
    """
    if all(sequence.params.is_plain for sequence in sequences):
        return _plain_input(len(sequences))
    return _sampling_input(sequences)


@lru_cache
def _plain_input(count: int) -> SamplingInput:
    """That of ``count`` rows of which each takes its likeliest token, to be read only."""
    zeros, none = np.zeros(count, np.float32), NO_EDITS.tokens
    return SamplingInput(
        temperature=zeros,
        top_k=np.zeros(count, np.int64),
        top_p=np.ones(count, np.float32),
        min_p=zeros,
        uniform=zeros,
        edit_rows=none,
        edit_tokens=none,
        edit_scale=_FLOATS,
        edit_bias=_FLOATS,
    )


def _sampling_input(sequences: Rows[Sequence]) -> SamplingInput:
    settings = [sequence.params.drawing for sequence in sequences]
    columns = np.array(settings, np.float64).reshape(-1, 4)
    draws = [
        uniform(s.seed, len(s.output) + s.awaiting) if row[0] else 0.0
        for s, row in zip(sequences, settings, strict=True)
    ]
    edited = [row for row, sequence in enumerate(sequences) if sequence.params.edits]
    edits = [NO_EDITS, *(sequences[row].edits() for row in edited)]
    rows = np.repeat(np.array(edited, np.int64), [len(one.tokens) for one in edits[1:]])
    tokens, scale, bias = (np.concatenate(parts) for parts in zip(*edits, strict=True))
    wanted = [s.params.logprobs for s in sequences if s.params.logprobs is not None]
    return SamplingInput(
        temperature=columns[:, 0].astype(np.float32),
        top_k=columns[:, 1].astype(np.int64),
        top_p=columns[:, 2].astype(np.float32),
        min_p=columns[:, 3].astype(np.float32),
        uniform=np.array(draws, np.float32),
        edit_rows=rows,
        edit_tokens=tokens,
        edit_scale=scale,
        edit_bias=bias,
        num_logprobs=max(wanted, default=-1),
    )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on the seed and the output position and nothing else.

    53 bits of BLAKE2b; so a text repeats whatever else is in the batch, and after preemption.
    """
    digest = hashlib.blake2b(b"%d:%d" % (seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
