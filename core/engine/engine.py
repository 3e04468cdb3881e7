"""Requests in, deltas out: the loop of schedule, run, read."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import partial

from qinfer.core.engine.answer import Answer, row_logprobs
from qinfer.core.engine.kv_cache import BlockPool
from qinfer.core.engine.plan import Plan, StepInFlight, ending, plan
from qinfer.core.engine.sampler import sampling_input
from qinfer.core.engine.scheduler import Chunk, Scheduler
from qinfer.core.engine.sequence import Sequence
from qinfer.core.errors import BadInput, InvalidParams
from qinfer.core.outputs import Delta, Usage
from qinfer.core.params import SamplingParams
from qinfer.core.protocols import OverlappingRunner, Runner
from qinfer.core.registry.hooks import Hooks
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import (
    CacheSpec,
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
        self._flight: StepInFlight | None = None
        self._plan: Plan | None = None

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
        try:
            flight = self._flight or self._begin(begin)
            if flight is None:
                return []
            self._flight = None
            following, begun = self._follow(flight, begin)
            output = flight.wait()
            chunks = [chunk for chunk in flight.chunks if chunk.sequence in self._answers]
            deltas = self._deltas(flight, output)
            if begun is not None:
                self._flight = self._under_way(begun)
            elif following is not None:
                self._plan = following.with_tokens(output.token_ids)
        except BaseException:  # Ctrl-C too: the engine must be usable afterwards
            self._undo()
            raise
        self._report(chunks, time.perf_counter() - begin)
        return deltas

    def _begin(self, now: float) -> StepInFlight | None:
        """Begin a step all of whose tokens are known; None if there is nothing to do."""
        chosen = self._plan or self._schedule(now, None)
        self._plan = None
        if chosen is None:
            return None
        sampling = sampling_input(ending(chosen.chunks))
        if isinstance(self.runner, OverlappingRunner):
            finish = self.runner.begin(chosen.batch, sampling)
        else:
            finish = partial(self.runner.step, chosen.batch, sampling)
        return self._under_way(StepInFlight(chosen.chunks, chosen.batch, finish))

    def _under_way(self, step: StepInFlight) -> StepInFlight | None:
        """A step whose tokens come next; None if nobody is left to get them."""
        alive = [chunk for chunk in step.chunks if chunk.sequence in self._answers]
        chosen = step.chosen() if alive else None
        for sequence in ending(alive):
            sequence.awaiting = 1
        return chosen

    def _follow(self, flight: StepInFlight, now: float) -> tuple[Plan | None, StepInFlight | None]:
        """Choose the step after this one, and begin it where its tokens need not be known."""
        if not isinstance(self.runner, OverlappingRunner):
            return None, None
        following = self._schedule(now, flight)
        return following, following.begin_ahead(self.runner) if following else None

    def _schedule(self, now: float, before: StepInFlight | None) -> Plan | None:
        chunks = self.scheduler.schedule()
        if not chunks:
            return None
        for chunk in chunks:
            chunk.sequence.started_at = chunk.sequence.started_at or now
        return plan(chunks, self.block_size, before)

    def _deltas(self, flight: StepInFlight, output: StepOutput) -> list[tuple[int, Delta]]:
        """Hand a step's tokens to the sequences that are still there."""
        tokens, now = output.token_ids.tolist(), time.perf_counter()
        return [
            (sequence.request_id, self._delta(sequence, token, output, row, now))
            for row, (sequence, token) in enumerate(zip(ending(flight.chunks), tokens, strict=True))
            if sequence in self._answers
        ]

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
        sequence.awaiting = 0
        text = answer.push(token)
        sequence.first_token_at = sequence.first_token_at or now
        logprobs = row_logprobs(output, row, sequence, self.tokenizer)
        if answer.finish_reason is None:
            return Delta(index=sequence.index, text=text, token_ids=(token,), logprobs=logprobs)
        self.scheduler.finish(sequence)
        del self._answers[sequence]
        stats = sequence.stats(answer.finish_reason, now)
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

    def _undo(self) -> None:
        """A step failed or was interrupted: nothing it was to write can be trusted."""
        while self.scheduler.running:
            self.scheduler.preempt(self.scheduler.running[-1])
        for sequence in self._answers:
            sequence.awaiting = 0
        self.pool.forget_all()
        self._flight = self._plan = None

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
