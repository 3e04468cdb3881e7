"""How a request's tokens are chosen and when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from qinfer.core.errors import InvalidParams

MAX_LOGPROBS = 20

GREEDY_BELOW = 1e-5
"""A lower temperature is greedy: dividing by it would overflow."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling settings of one request. ``None`` means the checkpoint's own default
    (generation_config.json), and where it has none, greedy decoding with nothing filtered.

    temperature: 0 is greedy. top_k: 0 is off. top_p in (0, 1]. min_p in [0, 1].
    repetition_penalty > 0 (CTRL, arXiv:1909.05858; prompt and output tokens), presence_penalty and
    frequency_penalty in [-2, 2] (output tokens, as OpenAI defines them).
    seed: same seed, same text, whatever else is in the batch; without one it is drawn at random.
    logprobs: None, 0 for the chosen token's, k for the k best as well.
    stop: texts, and stop_token_ids: tokens, that end the request; neither is part of its text.
    max_tokens None: up to the end of the context. Raises InvalidParams, naming each bad value.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 256
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n: int = 1

    def __post_init__(self) -> None:
        """Normalise sequences and check every value."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        bad = [problem for problem in _problems(self) if problem]
        if bad:
            raise InvalidParams("invalid sampling parameters: " + "; ".join(bad))

    @cached_property
    def drawing(self) -> tuple[float, int, float, float]:
        """Temperature, top_k, top_p and min_p as the operators take them."""
        temperature = self.temperature or 0.0
        return (
            0.0 if temperature < GREEDY_BELOW else temperature,
            self.top_k or 0,
            1.0 if self.top_p is None else self.top_p,
            self.min_p or 0.0,
        )

    @cached_property
    def is_plain(self) -> bool:
        """Whether such a request wants the likeliest tokens and nothing else."""
        return self.drawing[0] == 0 and not self.edits and self.logprobs is None

    @cached_property
    def edits(self) -> bool:
        """Whether the logits of such a request may be edited."""
        return bool(
            self.logit_bias
            or (self.repetition_penalty or 1.0) != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.min_tokens
        )

    def with_defaults(self, generation_config: Mapping[str, Any]) -> SamplingParams:
        """Fill every ``None`` from a parsed generation_config.json, then from the neutral value.

        As in transformers, a config without ``do_sample: true`` means greedy. Asking for top_k,
        top_p or min_p without a temperature then means temperature 1.
        """
        config = generation_config if generation_config.get("do_sample") else {}
        asked = any(value is not None for value in (self.top_k, self.top_p, self.min_p))
        neutral: dict[str, Any] = {
            "temperature": 1.0 if config or asked else 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": generation_config.get("repetition_penalty") or 1.0,
        }
        filled = {}
        for name, fallback in neutral.items():
            if getattr(self, name) is None:
                value = config.get(name)
                filled[name] = fallback if value is None else value
        return replace(self, **filled)


def _problems(p: SamplingParams) -> list[str]:
    """One sentence for each value out of range, or an empty text."""
    return [
        _number("temperature", p.temperature, 0, 100),
        _integer("top_k", p.top_k, 0),
        _number("top_p", p.top_p, 0, 1, open_low=True),
        _number("min_p", p.min_p, 0, 1),
        _number("repetition_penalty", p.repetition_penalty, 0, 100, open_low=True),
        _number("presence_penalty", p.presence_penalty, -2, 2),
        _number("frequency_penalty", p.frequency_penalty, -2, 2),
        _integer("seed", p.seed, 0, 2**64 - 1),
        _integer("max_tokens", p.max_tokens, 1),
        _integer("min_tokens", p.min_tokens, 0),
        _integer("logprobs", p.logprobs, 0, MAX_LOGPROBS),
        _integer("n", p.n, 1, 1024),
        _stops(p),
        _bias(p),
        "min_tokens is greater than max_tokens"
        if isinstance(p.max_tokens, int)
        and isinstance(p.min_tokens, int)
        and p.min_tokens > p.max_tokens
        else "",
    ]


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name} must be a number, not {value!r}"
    inside = math.isfinite(value) and value <= high and (value > low if open_low else value >= low)
    bracket = "(" if open_low else "["
    return "" if inside else f"{name} must be in {bracket}{low}, {high}], not {value}"


def _integer(name: str, value: Any, low: int, high: int | None = None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{name} must be a whole number, not {value!r}"
    if value < low:
        return f"{name} must be at least {low}, not {value}"
    return f"{name} must be at most {high}, not {value}" if high and value > high else ""


def _stops(p: SamplingParams) -> str:
    if not all(isinstance(text, str) and text for text in p.stop):
        return "stop must be non-empty texts"
    if not all(isinstance(token, int) and token >= 0 for token in p.stop_token_ids):
        return "stop_token_ids must be token ids (0 or more)"
    return ""


def _bias(p: SamplingParams) -> str:
    for token, bias in p.logit_bias.items():
        if not isinstance(token, int) or token < 0 or _number("", bias, -100, 100):
            return f"logit_bias maps token ids to numbers in [-100, 100], not {token!r}: {bias!r}"
    return ""


PARAM_NAMES = frozenset(f.name for f in fields(SamplingParams))
