"""Sampling parameters as the arrays the sampling operators take."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Rows

import numpy as np

from qinfer.core.engine.sequence import Sequence
from qinfer.core.types import SamplingInput


def sampling_input(sequences: Rows[Sequence]) -> SamplingInput:
    """One row for each sequence whose next token is to be chosen. Of one whose last token is not
    known yet the edits (``params.edits``) are not right.
    """
    settings = [sequence.params.drawing for sequence in sequences]
    columns = np.array(settings, np.float64).reshape(-1, 4)
    draws = [
        uniform(s.seed, len(s.output) + s.awaiting) if row[0] else 0.0
        for s, row in zip(sequences, settings, strict=True)
    ]
    edits = [
        edit
        for row, sequence in enumerate(sequences)
        if sequence.params.edits
        for edit in _edits(row, sequence)
    ]
    rows, tokens, scale, bias = zip(*edits, strict=True) if edits else ((), (), (), ())
    wanted = [s.params.logprobs for s in sequences if s.params.logprobs is not None]
    return SamplingInput(
        temperature=columns[:, 0].astype(np.float32),
        top_k=columns[:, 1].astype(np.int64),
        top_p=columns[:, 2].astype(np.float32),
        min_p=columns[:, 3].astype(np.float32),
        uniform=np.array(draws, np.float32),
        edit_rows=np.array(rows, np.int64),
        edit_tokens=np.array(tokens, np.int64),
        edit_scale=np.array(scale, np.float32),
        edit_bias=np.array(bias, np.float32),
        num_logprobs=max(wanted, default=-1),
    )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on the seed and the output position and nothing else.

    53 bits of BLAKE2b; so a text repeats whatever else is in the batch, and after preemption.
    """
    digest = hashlib.blake2b(b"%d:%d" % (seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def _edits(row: int, sequence: Sequence) -> list[tuple[int, int, float, float]]:
    """(row, token, scale, bias) for every token this sequence's penalties or biases touch."""
    params, output = sequence.params, sequence.output
    scale: dict[int, float] = {}
    bias = dict(params.logit_bias)
    if (params.repetition_penalty or 1.0) != 1.0:
        seen = set(sequence.prompt).union(output)
        scale = dict.fromkeys(seen, params.repetition_penalty or 1.0)
    if params.presence_penalty or params.frequency_penalty:
        tokens, counts = np.unique(np.array(output, np.int64), return_counts=True)
        for token, count in zip(tokens.tolist(), counts.tolist(), strict=True):
            penalty = params.presence_penalty + params.frequency_penalty * count
            bias[token] = bias.get(token, 0.0) - penalty
    if len(output) < params.min_tokens:
        ends = {*params.stop_token_ids, *sequence.eos_token_ids}
        bias.update(dict.fromkeys(ends, -np.inf))
    touched = sorted(scale.keys() | bias.keys())
    return [(row, token, scale.get(token, 1.0), bias.get(token, 0.0)) for token in touched]
