"""Choosing one token for each row of logits."""

from __future__ import annotations

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor
from paddle.nn.functional import log_softmax, softmax

from qinfer.core.types import SamplingInput
from qinfer.cuda_ops.table import operator

MAX_SHORTLIST = 1024
"""Up to this top-k a partial sort replaces the full one."""


@operator
def edit_logits(
    logits: Tensor, rows: Tensor, tokens: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """Apply penalties and biases at (rows, tokens) [E], each pair once; logits [R, V].

    A positive logit is divided by ``scale``, another multiplied (repetition penalty,
    arXiv:1909.05858); then ``bias`` is added (-inf forbids a token).
    """
    where = paddle.stack([rows, tokens], axis=1)
    old = paddle.gather_nd(logits, where)
    new = paddle.where(old > 0, old / scale, old * scale) + bias
    flat = rows * logits.shape[1] + tokens
    return paddle.scatter(logits.reshape([-1]), flat, new).reshape(logits.shape)


@operator
def argmax(logits: Tensor) -> Tensor:
    """The first index of each row's largest logit; [R, V] -> [R] int64."""
    return paddle.argmax(logits, axis=-1)


@operator
def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    shortlist: int,
) -> Tensor:
    """Sample each row of logits [R, V] by the inverse of its cumulative distribution.

    Order: temperature, top-k, top-p (the smallest set reaching p), min-p (relative to the best;
    arXiv:2407.01082), as in transformers. Parameters [R]; temperature 0 takes the first largest
    logit; ``top_k`` 0 is off; ``uniform`` in [0, 1) picks the token. ``shortlist``: how many best
    tokens suffice for every row that is drawn (0: all). Returns [R] int64.
    """
    count = shortlist or logits.shape[1]
    greedy = temperature == 0
    scaled = logits / paddle.where(greedy, paddle.ones_like(temperature), temperature).unsqueeze(1)
    best, ids = paddle.topk(scaled, count, axis=-1)
    rank = paddle.arange(count).unsqueeze(0)
    limit = paddle.where(top_k > 0, top_k, paddle.full_like(top_k, count)).unsqueeze(1)
    best = paddle.where(rank < limit, best, paddle.full_like(best, float("-inf")))
    probabilities = softmax(best, axis=-1)
    before = paddle.cumsum(probabilities, axis=-1) - probabilities
    keep = (before < top_p.unsqueeze(1)) & (
        probabilities >= min_p.unsqueeze(1) * probabilities[:, :1]
    )
    kept = probabilities * (keep | (rank == 0)).astype(probabilities.dtype)
    total = paddle.cumsum(kept, axis=-1)
    target = uniform.unsqueeze(1) * total[:, -1:]
    # The first token whose running total exceeds the target; rounding can leave none.
    chosen = (total <= target).astype("int64").sum(axis=-1, keepdim=True)
    last = (kept > 0).astype("int64").sum(axis=-1, keepdim=True) - 1
    drawn = paddle.take_along_axis(ids, paddle.minimum(chosen, last), axis=1).squeeze(1)
    return paddle.where(greedy, paddle.argmax(logits, axis=-1), drawn)


@operator
def token_logprobs(logits: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log-probabilities of ``chosen`` [R], and of the ``count`` best with their ids."""
    logprobs = log_softmax(logits.astype("float32"), axis=-1)
    picked = paddle.take_along_axis(logprobs, chosen.unsqueeze(1), axis=1).squeeze(1)
    top, ids = paddle.topk(logprobs, max(count, 1), axis=-1)
    return picked, top[:, :count], ids[:, :count]


def choose_tokens(
    logits: Tensor, best: Tensor | None, params: SamplingInput
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """One token for each row of logits [R, V]: edits, then greedy or sampled.

    ``best`` [R] is their argmax where that is known; ``params`` holds numpy arrays. Returns the
    tokens and, where asked for, the log-probabilities of the unedited logits.
    """
    edited = logits
    if params.edit_rows.shape[0]:
        edits = (params.edit_rows, params.edit_tokens, params.edit_scale, params.edit_bias)
        edited, best = edit_logits(logits, *map(paddle.to_tensor, edits)), None
    greedy = params.temperature == 0
    if greedy.all():
        chosen = argmax(edited) if best is None else best
    else:
        chosen = sample(
            edited,
            paddle.to_tensor(params.temperature),
            paddle.to_tensor(params.top_k),
            paddle.to_tensor(params.top_p),
            paddle.to_tensor(params.min_p),
            paddle.to_tensor(params.uniform),
            _shortlist(params.top_k[~greedy], logits.shape[1]),
        )
    wanted = params.num_logprobs
    return chosen, None if wanted < 0 else token_logprobs(logits, chosen, wanted)


def _shortlist(limits: NDArray[np.int64], vocabulary: int) -> int:
    """How many best tokens suffice for rows with these top-k; 0 if one of them has none."""
    if limits.min() <= 0 or limits.max() > MAX_SHORTLIST:
        return 0
    return int(min(limits.max(), vocabulary))
