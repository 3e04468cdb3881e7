"""What was measured while a model was loaded and ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """An operator's part in a step: ``calls`` of it over the same ``shapes`` (of its result and of
    its largest argument), the ``seconds`` one takes, and the bytes it has to read and write.
    """

    name: str
    shapes: str
    calls: int
    seconds: float
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class LoadStats:
    """What loading a model took: seconds, and bytes of parameters held."""

    seconds: float
    parameter_bytes: int
    num_parameters: int
    layers_by_scheme: Mapping[str, int]
    skipped: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """One engine step: token counts, seconds, and how full the KV cache is (0 to 1)."""

    prefill_tokens: int
    decode_tokens: int
    seconds: float
    running: int
    waiting: int
    kv_usage: float


@dataclass(frozen=True, kw_only=True)
class RequestStats:
    """One finished request. Seconds count from the moment the request was added."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    queue_seconds: float
    first_token_seconds: float
    total_seconds: float
    preemptions: int
