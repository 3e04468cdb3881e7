"""What penalties, biases and a minimum of tokens do to the logits of a sequence's next token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qinfer.core.params import SamplingParams


class Edits(NamedTuple):
    """Each token once: its logit is scaled (``edit_logits`` says how), then ``bias`` is added."""

    tokens: NDArray[np.int64]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


class TokenEdits:
    """A sequence's, kept from step to step: a prompt's tokens are looked at once."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], ends: Iterable[int]) -> None:
        """``ends``: tokens that may not come before ``params.min_tokens`` others."""
        self.params, self._known = params, 0
        self._repetition = np.float32(params.repetition_penalty or 1.0)
        penalties = (self._repetition != 1, params.frequency_penalty, params.presence_penalty)
        self._counts = any(penalties)
        self._places: dict[int, int] = {}
        self._tokens = np.zeros(0, np.int64)
        self._scale, self._bias, self._count = (np.zeros(0, np.float32) for _ in range(3))
        if self._repetition != 1:
            seen = self._add(np.unique(np.array(prompt, np.int64)).tolist())
            self._scale[seen] = self._repetition
        for token, bias in params.logit_bias.items():
            (at,) = self._add([token])
            self._bias[at] = bias
        self._ends = self._add(ends if params.min_tokens else ())

    def after(self, output: Sequence[int]) -> Edits:
        """Those that follow this output, which goes on from that of the call before."""
        for token in output[self._known :] if self._counts else ():
            (at,) = self._add([token])
            self._count[at] += 1
            self._scale[at] = self._repetition
        self._known = len(output)
        count, params = len(self._places), self.params
        tokens, scale, bias = self._tokens[:count], self._scale[:count], self._bias[:count]
        if params.frequency_penalty or params.presence_penalty:
            times = self._count[:count]
            bias = bias - params.frequency_penalty * times
            bias -= np.float32(params.presence_penalty) * (times > 0)
        if len(output) < params.min_tokens:
            bias = bias.copy()
            bias[self._ends] = -np.inf
        if not params.min_tokens:
            return Edits(tokens, scale, bias)
        touched = (scale != 1) | (bias != 0)  # an end may come later on
        return Edits(tokens[touched], scale[touched], bias[touched])

    def _add(self, tokens: Iterable[int]) -> list[int]:
        """Where these tokens are, now at least."""
        found = []
        for token in tokens:
            at = self._places.setdefault(token, len(self._places))
            if at == len(self._tokens):
                self._grow()
            self._tokens[at] = token
            found.append(at)
        return found

    def _grow(self) -> None:
        more = max(len(self._tokens), 64)
        self._tokens = np.pad(self._tokens, (0, more))
        self._bias, self._count = (np.pad(part, (0, more)) for part in (self._bias, self._count))
        self._scale = np.pad(self._scale, (0, more), constant_values=1)
