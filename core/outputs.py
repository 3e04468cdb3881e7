"""What a request gives back: whole (``RequestOutput``) or piece by piece (``Delta``)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qinfer.core.types import RequestStats


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A chosen token's natural-log probability, and the best alternatives as
    (token id, text, log-probability), best first.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON: ``top`` becomes a list of objects shaped like this one."""
        top = [{"token_id": i, "token": text, "logprob": p} for i, text, p in self.top]
        return {
            "token_id": self.token_id,
            "token": self.token,
            "logprob": self.logprob,
            "top": top,
        }


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished answer. ``stop_reason`` is the stop text or token id that ended it, if any."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON, without token ids; ``logprobs`` only when they were asked for."""
        record: dict[str, Any] = {
            "index": self.index,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
        }
        if self.logprobs is not None:
            record["logprobs"] = [token.to_json() for token in self.logprobs]
        return record


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of a request: ``cached_tokens`` of the prompt's came from the prefix cache;
    ``completion_tokens`` counts all n answers.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def to_json(self) -> dict[str, int]:
        """As JSON, by the same names."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A finished request: the rendered prompt and its n completions, in order of index.

    ``stats`` has one entry per completion.
    """

    prompt: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    usage: Usage
    stats: tuple[RequestStats, ...] = ()

    @property
    def text(self) -> str:
        """The first completion's text."""
        return self.completions[0].text

    def to_json(self) -> dict[str, Any]:
        """As JSON: the first completion's fields at the top level; with n > 1 also all of
        them under "completions".
        """
        record = self.completions[0].to_json()
        del record["index"]
        record["usage"] = self.usage.to_json()
        if len(self.completions) > 1:
            record["completions"] = [completion.to_json() for completion in self.completions]
        return record


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What completion ``index`` gained. The last one of a completion has ``finish_reason``,
    ``usage`` and ``stats``.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage | None = None
    stats: RequestStats | None = None
