"""Requests in, deltas out: the loop of schedule, run, read."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from qinfer.core.engine.ahead import NextStep, Step, can_follow
from qinfer.core.engine.answer import Answer, row_logprobs
from qinfer.core.engine.batch import step_input
from qinfer.core.engine.kv_cache import BlockPool
from qinfer.core.engine.sampler import sampling_input
from qinfer.core.engine.scheduler import Chunk, Scheduler
from qinfer.core.engine.sequence import Sequence
from qinfer.core.errors import BadInput, InvalidParams
from qinfer.core.hooks import Hooks
from qinfer.core.outputs import Delta, Usage
from qinfer.core.params import SamplingParams
from qinfer.core.protocols import OverlappingRunner, Runner
from qinfer.core.tokenizer import Tokenizer
from qinfer.core.types import (
    CacheSpec,
    RequestStats,
    RunConfig,
    StepOutput,
    StepStats,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask of this model: context length, vocabulary, end tokens.

    ``first_row``: prompt tokens -> where the position tables begin for such a sequence.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    first_row: Callable[[int], int] = lambda _: 0


class Engine:
    """Holds the queue, the scheduler and the runner; knows nothing of models or devices."""

    def __init__(
        self,
        runner: Runner,
        cache: CacheSpec,
        run: RunConfig,
        limits: Limits,
        tokenizer: Tokenizer,
        hooks: Hooks,
    ) -> None:
        self.runner, self.tokenizer, self.hooks, self.limits = runner, tokenizer, hooks, limits
        self.cache, self.block_size = cache, cache.block_size
        self.pool = BlockPool(cache.num_blocks)
        self.scheduler = Scheduler(
            self.pool, cache.block_size, run.max_num_seqs, run.max_batch_tokens
        )
        self._answers: dict[Sequence, Answer] = {}
        self._requests = 0
        self._ready: NextStep | None = None

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self._answers)

    def add(self, prompt: Rows[int], params: SamplingParams) -> int:
        """Queue a request whose parameters have no ``None`` left to fill; returns its id.

        Raises BadInput for a prompt that is empty or leaves no room in the context, and
        InvalidParams for token ids outside the vocabulary.
        """
        room = self._check(prompt, params)
        self._requests += 1
        seed = secrets.randbits(63) if params.seed is None else params.seed
        eos = frozenset() if params.ignore_eos else self.limits.eos_token_ids
        for index in range(params.n):
            sequence = Sequence(
                request_id=self._requests,
                index=index,
                prompt=list(prompt),
                params=params,
                seed=seed + index,
                max_tokens=min(params.max_tokens or room, room),
                eos_token_ids=eos,
                first_row=self.limits.first_row(len(prompt)),
                added_at=time.perf_counter(),
            )
            self._answers[sequence] = Answer(sequence, self.tokenizer)
            self.scheduler.add(sequence)
        return self._requests

    def step(self) -> list[tuple[int, Delta]]:
        """Run one step; returns (request id, delta) for every sequence that gained a token."""
        begin = time.perf_counter()
        ready, self._ready = self._ready, None
        step = ready.take(self.scheduler) if ready else None
        chunks = step[0] if step else self.scheduler.schedule()
        if not chunks:
            return []
        for chunk in chunks:
            chunk.sequence.started_at = chunk.sequence.started_at or begin
        ending = [chunk.sequence for chunk in chunks if chunk.is_last]
        try:
            output = self._run(
                step or (chunks, step_input(chunks, self.block_size), sampling_input(ending))
            )
            tokens, now = output.token_ids.tolist(), time.perf_counter()
            deltas = [
                (sequence.request_id, self._delta(sequence, token, output, row, now))
                for row, (sequence, token) in enumerate(zip(ending, tokens, strict=True))
            ]
        except BaseException:  # Ctrl-C too: the engine must be usable afterwards
            self._undo(chunks)
            raise
        self._report(chunks, time.perf_counter() - begin)
        return deltas

    def _run(self, step: Step) -> StepOutput:
        """Run a step; a device that computes by itself leaves time to make the next one ready."""
        chunks, batch, sampling = step
        if not isinstance(self.runner, OverlappingRunner):
            return self.runner.step(batch, sampling)

        def prepare() -> None:
            if can_follow(chunks, self.scheduler):
                self._ready = NextStep(chunks, batch, self.scheduler)

        return self.runner.step_while(batch, sampling, prepare)

    def abort(self, request_id: int) -> None:
        """Drop what is left of a request; unknown and finished ones are ignored."""
        for sequence in [s for s in self._answers if s.request_id == request_id]:
            self.scheduler.finish(sequence)
            del self._answers[sequence]

    def close(self) -> None:
        """Drop all requests and free the model."""
        for sequence in list(self._answers):
            self.abort(sequence.request_id)
        self.runner.close()

    def _check(self, prompt: Rows[int], params: SamplingParams) -> int:
        """How many tokens the answer may have."""
        limits = self.limits
        if not prompt:
            raise BadInput("the prompt is empty", remedy="Give at least one token of text.")
        room = limits.max_model_len - len(prompt)
        if room < 1:
            raise BadInput(
                f"the prompt has {len(prompt)} tokens and the context holds "
                f"{limits.max_model_len}, one of them for the answer",
                remedy="Shorten the prompt, or raise --max-model-len or --kv-cache-memory "
                "if the model's own context is longer.",
            )
        named = [*params.stop_token_ids, *params.logit_bias]
        outside = [token for token in named if token >= limits.vocab_size]
        if outside or max(prompt) >= limits.vocab_size:
            raise InvalidParams(
                f"token ids {outside or [max(prompt)]} are outside the model's vocabulary "
                f"of {limits.vocab_size}"
            )
        return room

    def _delta(
        self, sequence: Sequence, token: int, output: StepOutput, row: int, now: float
    ) -> Delta:
        """Hand a sequence its chosen token and describe what it gained."""
        answer = self._answers[sequence]
        text = answer.push(token)
        sequence.first_token_at = sequence.first_token_at or now
        logprobs = row_logprobs(output, row, sequence, self.tokenizer)
        if answer.finish_reason is None:
            return Delta(index=sequence.index, text=text, token_ids=(token,), logprobs=logprobs)
        self.scheduler.finish(sequence)
        del self._answers[sequence]
        stats = _request_stats(sequence, answer.finish_reason, now)
        self.hooks.request_done(stats)
        return Delta(
            index=sequence.index,
            text=text,
            token_ids=(token,),
            logprobs=logprobs,
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
            usage=Usage(
                prompt_tokens=stats.prompt_tokens,
                completion_tokens=stats.output_tokens,
                cached_tokens=stats.cached_tokens,
            ),
            stats=stats,
        )

    def _undo(self, chunks: Rows[Chunk]) -> None:
        """A step failed or was interrupted: nothing it was to write can be trusted."""
        for chunk in reversed(chunks):
            if chunk.sequence in self.scheduler.running:
                self.scheduler.preempt(chunk.sequence)
        self.pool.forget_all()
        self._ready = None

    def _report(self, chunks: Rows[Chunk], seconds: float) -> None:
        decoded = sum(chunk.length == 1 and chunk.is_last for chunk in chunks)
        self.hooks.step_done(
            StepStats(
                prefill_tokens=sum(chunk.length for chunk in chunks) - decoded,
                decode_tokens=decoded,
                seconds=seconds,
                running=len(self.scheduler.running),
                waiting=len(self.scheduler.waiting),
                kv_usage=1 - self.pool.num_free / len(self.pool.references),
            )
        )


def _request_stats(sequence: Sequence, reason: str, now: float) -> RequestStats:
    return RequestStats(
        prompt_tokens=len(sequence.prompt),
        cached_tokens=sequence.num_cached,
        output_tokens=len(sequence.output),
        finish_reason=reason,
        queue_seconds=sequence.started_at - sequence.added_at,
        first_token_seconds=sequence.first_token_at - sequence.added_at,
        total_seconds=now - sequence.added_at,
        preemptions=sequence.preemptions,
    )
