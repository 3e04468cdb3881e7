"""A sequence's output as its reader sees it: text, stop conditions, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from qinfer.core.engine.sequence import Sequence
from qinfer.core.outputs import TokenLogprob
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import StepOutput


class Answer:
    """Turns a sequence's tokens into text, and decides when it is over.

    Text that may be the beginning of a stop text is held back until that is certain.
    """

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer) -> None:
        self.sequence = sequence
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self._stream = tokenizer.text_stream()
        self._held = ""
        params = sequence.params
        eos = frozenset() if params.ignore_eos else sequence.eos_token_ids
        self._ends = eos.union(params.stop_token_ids)  # tokens that end the text, not part of it

    def push(self, token_id: int) -> str:
        """Append a chosen token; returns the text to show, and sets the finish reason."""
        sequence, params = self.sequence, self.sequence.params
        sequence.output.append(token_id)
        if token_id in self._ends:
            self.finish_reason = "stop"
            if token_id in params.stop_token_ids:
                self.stop_reason = token_id
            return self._flush()
        text = self._stream.push(token_id)
        if not params.stop and len(sequence.output) < sequence.max_tokens:
            return text  # nothing to hold back
        self._held += text
        if len(sequence.output) >= params.min_tokens:
            at, text = _first_stop(self._held, params.stop)
            if text:
                self.finish_reason, self.stop_reason = "stop", text
                return self._held[:at]
        if len(sequence.output) >= sequence.max_tokens:
            self.finish_reason = "length"
            return self._flush()
        keep = _possible_stop(self._held, params.stop)
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown

    def _flush(self) -> str:
        return self._held + self._stream.finish()


def _first_stop(text: str, stops: Rows[str]) -> tuple[int, str]:
    """Where the earliest stop text begins, and which (the longest of those that begin there)."""
    hits = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    return (min(hits)[0], min(hits)[2]) if hits else (0, "")


def _possible_stop(text: str, stops: Rows[str]) -> int:
    """Length of the longest end of ``text`` that a stop text begins with."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest


def row_logprobs(
    output: StepOutput, row: int, sequence: Sequence, tokenizer: Tokenizer
) -> tuple[TokenLogprob, ...] | None:
    """The log-probabilities of one row, if its request asked for them."""
    count = sequence.params.logprobs
    if count is None or output.logprobs is None:
        return None
    ids, values = output.top_ids, output.top_logprobs
    best = () if ids is None or values is None else zip(ids[row], values[row], strict=True)
    top = [(int(i), tokenizer.token_text(int(i)), float(value)) for i, value in best]
    token = int(output.token_ids[row])
    return (
        TokenLogprob(
            token_id=token,
            token=tokenizer.token_text(token),
            logprob=float(output.logprobs[row]),
            top=tuple(top[:count]),
        ),
    )
