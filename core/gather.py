"""Many prompts at once: feeding the engine, and putting each one's pieces together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qinfer.core.errors import BadInput, UsageError
from qinfer.core.outputs import Completion, Delta, RequestOutput, TokenLogprob, Usage
from qinfer.core.params import SamplingParams
from qinfer.core.types import RequestStats

if TYPE_CHECKING:
    from qinfer.core.llm import LLM, Prompt, Submitted


@dataclass
class _Pieces:
    """One completion as its deltas come."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Delta | None = None

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs or ())
        if delta.finish_reason is not None:
            self.last = delta

    def completion(self, wants_logprobs: bool) -> Completion:
        assert self.last is not None
        assert self.last.finish_reason is not None
        return Completion(
            index=self.last.index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=self.last.finish_reason,
            stop_reason=self.last.stop_reason,
            logprobs=tuple(self.logprobs) if wants_logprobs else None,
        )


class _Collector:
    """A request's completions as they come."""

    def __init__(self, place: int, submitted: Submitted) -> None:
        self.place, self.submitted = place, submitted
        self.pieces = [_Pieces() for _ in range(submitted.params.n)]

    def add(self, deltas: Sequence[Delta]) -> bool:
        """Take deltas in; says whether all completions have ended."""
        for delta in deltas:
            self.pieces[delta.index].add(delta)
        return all(pieces.last is not None for pieces in self.pieces)

    def output(self) -> RequestOutput:
        """The finished request."""
        stats: list[RequestStats] = [
            p.last.stats for p in self.pieces if p.last is not None and p.last.stats is not None
        ]
        wants_logprobs = self.submitted.params.logprobs is not None
        return RequestOutput(
            prompt=self.submitted.prompt,
            prompt_token_ids=self.submitted.token_ids,
            completions=tuple(pieces.completion(wants_logprobs) for pieces in self.pieces),
            usage=Usage(
                prompt_tokens=len(self.submitted.token_ids),
                completion_tokens=sum(len(pieces.token_ids) for pieces in self.pieces),
                cached_tokens=stats[0].cached_tokens,
            ),
            stats=tuple(stats),
        )


def as_completed(
    llm: LLM,
    prompts: Iterable[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
) -> Iterator[tuple[int, RequestOutput | BadInput | UsageError]]:
    """See ``LLM.as_completed``."""
    feed = enumerate(prompts)
    collectors: dict[int, _Collector] = {}
    try:
        while True:
            yield from _fill(llm, feed, params, collectors)
            if not collectors:
                return
            for request, collector in list(collectors.items()):
                if collector.add(llm.collect(request)):
                    del collectors[request]
                    llm.drop(request)
                    yield collector.place, collector.output()
    finally:
        for request in collectors:
            llm.drop(request)


def _fill(
    llm: LLM,
    feed: Iterator[tuple[int, Prompt]],
    params: SamplingParams | Sequence[SamplingParams] | None,
    collectors: dict[int, _Collector],
) -> Iterator[tuple[int, BadInput | UsageError]]:
    """Queue prompts until the engine has more than it can run at once; gives those it refuses."""
    while len(collectors) < 2 * llm.engine.scheduler.max_num_seqs:
        place, prompt = next(feed, (None, ""))
        if place is None:
            return
        own = params[place] if isinstance(params, Sequence) else params
        try:
            submitted = llm.submit(prompt, own)
        except (BadInput, UsageError) as error:
            yield place, error
        else:
            collectors[submitted.request] = _Collector(place, submitted)
