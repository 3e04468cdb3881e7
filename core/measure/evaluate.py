"""How much a scheme changes a model: perplexity, and how far its predictions are from another run.

Every run reads the same tokens, in windows that each begin anew; the first token of a window is
not predicted. Logits come straight from the backend's runner, for all positions, with no sampling.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.errors import BadInput, Unsupported, UsageError
from qinfer.core.progress import NoProgress
from qinfer.core.session import Opened, Progress, open_engine, select
from qinfer.core.text.corpus import EVALUATION, read_corpus, windows
from qinfer.core.types import RunConfig, StepInput

CHUNK = 128
"""Tokens in a step: what is held of their logits at a time, [128, vocabulary]."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a run came to over ``tokens`` predicted tokens.

    ``perplexity``: exp of the mean negative log-probability of the text's own tokens. ``mean_kl``:
    mean Kullback-Leibler divergence of the run's distribution from the reference's, in nats.
    ``top1_agreement``: share of positions where both have the same likeliest token. The last two
    are None for the reference itself.
    """

    label: str
    model: str
    quant: str
    tokens: int
    perplexity: float
    mean_kl: float | None
    top1_agreement: float | None
    parameter_bytes: int
    seconds: float


def evaluate(
    reference: RunConfig,
    runs: Sequence[tuple[str, RunConfig]],
    *,
    text: Path | None = None,
    window: int = 512,
    limit: int = 0,
    progress: Progress | None = None,
) -> Iterator[Scores]:
    """Score the reference, then each of ``runs`` (label, run) against it, as they are done.

    The runs share one pass of the reference, whose distributions lie meanwhile in a temporary
    file. ``text``: a file for ``read_corpus``, by default the built-in texts; ``limit``: tokens at
    most, 0 for all. Raises UsageError where a run has another vocabulary than the reference.
    """
    report = progress or NoProgress()
    for run in (reference, *(run for _, run in runs)):
        select(run)  # a misspelt name is said before anything is computed
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qinfer-eval-")))
        opened, pieces = _open(reference, text, window, limit, report)
        vocabulary = opened.loaded.config.vocab_size
        kept = _Reference(folder, sum(len(piece) - 1 for piece in pieces), vocabulary)
        scores = _score(opened, pieces, "reference", kept.keep, report)
        yield scores
        for label, run in runs:
            opened, own = _open(run, text, window, limit, report)
            if own != pieces or opened.loaded.config.vocab_size != vocabulary:
                opened.engine.close()
                raise UsageError(
                    f"{run.model or 'the demo'} reads the text as other tokens than "
                    f"{reference.model or 'the demo'}, so their predictions cannot be compared",
                    remedy="Compare models of one vocabulary.",
                )
            yield _score(opened, pieces, label, kept.compare, report)


def prompt_logits(opened: Opened, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """The logits [n, vocabulary] float32 at each position of a prompt, some rows at a time.

    The engine must be idle; its prefix cache is emptied. Raises Unsupported for a backend whose
    runner has no ``logits``.
    """
    engine = opened.engine
    logits: Callable[[StepInput], Any] | None = getattr(engine.runner, "logits", None)
    if logits is None:
        raise Unsupported(
            f"the backend {opened.loaded.run.backend} does not give logits",
            remedy="Evaluate with --backend dynamic.",
        )
    if len(tokens) > engine.limits.max_model_len:
        raise BadInput(
            f"a window of {len(tokens)} tokens is longer than the context of "
            f"{engine.limits.max_model_len}",
            remedy="Lower --window.",
        )
    engine.pool.forget_all()
    size = engine.block_size
    blocks = -(-len(tokens) // size)
    for start in range(0, len(tokens), CHUNK):
        positions = np.arange(start, min(start + CHUNK, len(tokens)), dtype=np.int64)
        yield logits(
            StepInput(
                token_ids=np.array(tokens[start : start + CHUNK], np.int64),
                positions=positions,
                query_starts=np.array([0, len(positions)], np.int32),
                seq_lens=positions[-1:].astype(np.int32) + np.int32(1),
                slot_mapping=positions,
                block_tables=np.arange(blocks, dtype=np.int32)[None],
                logit_rows=np.arange(len(positions), dtype=np.int64),
            )
        )


Look = Callable[[int, NDArray[np.float32]], tuple[float, float]]
"""Takes the index of the first row and rows of logits, shifted so that the largest is 0; returns
the sum of the divergences and the number of agreements."""


def _score(
    opened: Opened, pieces: Sequence[Sequence[int]], label: str, look: Look, progress: Progress
) -> Scores:
    loaded, begin = opened.loaded, time.perf_counter()
    loss = divergence = agreed = 0.0
    row = 0
    try:
        with progress.bar(f"Scoring {label}", sum(map(len, pieces)), "tokens") as advance:
            for piece in pieces:
                following = iter(np.array_split(piece[1:], range(CHUNK, len(piece), CHUNK)))
                for logits in prompt_logits(opened, piece):
                    targets = next(following, np.empty(0, np.int64))
                    rows = logits[: len(targets)]
                    rows = rows - rows.max(axis=1, keepdims=True)
                    chosen = rows[np.arange(len(targets)), targets].astype(np.float64)
                    loss += float((_log_sum(rows) - chosen).sum())
                    further, same = look(row, rows)
                    divergence, agreed = divergence + further, agreed + same
                    row += len(targets)
                    advance(len(logits))
    finally:
        opened.engine.close()
    first = label == "reference"
    return Scores(
        label=label,
        model=opened.label,
        quant=loaded.run.quant,
        tokens=row,
        perplexity=math.exp(loss / row) if math.isfinite(loss) else math.inf,
        mean_kl=None if first else divergence / row,
        top1_agreement=None if first else agreed / row,
        parameter_bytes=loaded.stats.parameter_bytes,
        seconds=time.perf_counter() - begin,
    )


class _Reference:
    """The reference's distributions, in a file of 16-bit logits below each row's largest.

    Rounding them so changes a distribution by a divergence of about 1e-7.
    """

    def __init__(self, folder: Path, rows: int, vocabulary: int) -> None:
        needed, free = rows * vocabulary * 2, shutil.disk_usage(folder).free
        if needed > free:
            raise Unsupported(
                f"the reference's distributions over {rows:,} tokens take {needed >> 20:,} MiB, "
                f"and {folder.parent} has {free >> 20:,} MiB free",
                remedy="Give fewer tokens (--max-tokens), or set TMPDIR to a larger disk.",
            )
        shape = (rows, vocabulary)
        self.rows = np.memmap(folder / "logits", np.float16, mode="w+", shape=shape)

    def keep(self, start: int, rows: NDArray[np.float32]) -> tuple[float, float]:
        """Write rows of the reference."""
        with np.errstate(over="ignore"):  # -inf is a probability of nothing
            self.rows[start : start + len(rows)] = rows
        return 0.0, 0.0

    def compare(self, start: int, rows: NDArray[np.float32]) -> tuple[float, float]:
        """Sum of KL(reference || rows), and how many likeliest tokens are the same."""
        theirs = self.rows[start : start + len(rows)].astype(np.float32)
        same = int((theirs.argmax(axis=1) == rows.argmax(axis=1)).sum())
        probability = np.exp(theirs - _log_sum(theirs)[:, None].astype(np.float32))
        gap = np.where(probability > 0, theirs - rows, np.float32(0))
        offset = _log_sum(rows) - _log_sum(theirs)
        weight = probability.sum(axis=1, dtype=np.float64)
        total = np.einsum("rv,rv->r", probability, gap, dtype=np.float64) / weight + offset
        return float(total.sum()), same


def _log_sum(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of each row's sum of exponentials; the rows' largest is 0."""
    total: NDArray[np.float64] = np.log(np.exp(rows).sum(axis=1, dtype=np.float64))
    return total


def _open(
    run: RunConfig, text: Path | None, window: int, limit: int, progress: Progress
) -> tuple[Opened, list[list[int]]]:
    """The model with a cache for one window, and the text as it reads it."""
    opened = open_engine(run, select(run), progress)
    try:
        documents = read_corpus(text or EVALUATION, opened.tokenizer)
        pieces = windows(documents, min(window, opened.engine.limits.max_model_len), limit)
        vocabulary = opened.loaded.config.vocab_size
        if max(map(max, pieces)) >= vocabulary:
            raise BadInput(
                f"the tokenizer has tokens outside the model's vocabulary of {vocabulary:,}",
                remedy="Tokenizer and model are not of one checkpoint.",
            )
    except BaseException:
        opened.engine.close()
        raise
    return opened, pieces
