"""Tokens to text one at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Container, Sequence
from typing import Protocol

BROKEN = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD = 4  # a UTF-8 character has at most 4 bytes, and a token at least one


class TextStream(Protocol):
    """Text of a growing token sequence. The joined pieces are the decoded whole, less an
    incomplete character at its end.
    """

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now complete (often empty)."""

    def finish(self) -> str:
        """End the stream; return what was held back and is complete. Half a character is
        dropped.
        """


class ByteStream:
    """For byte-level vocabularies, where a token is a fixed run of bytes: exact, and a constant
    amount of work per token. Bytes that can't be UTF-8 become U+FFFD as soon as that is certain.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now complete."""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """End the stream; half a character is dropped."""
        held = self._decoder.getstate()[0]
        self._decoder.reset()
        # Python also holds the first two bytes of a surrogate, and no character begins with them.
        return held.decode(errors="replace") if b"\xed\xa0" <= held < b"\xee" else ""


class WindowStream:
    """For other vocabularies, where a token's text depends on its neighbours: decodes a window
    of the last few tokens twice, without and with the new one, as vLLM and TGI do.

    Text that ends in U+FFFD is held back, but for at most 4 tokens: after that its bytes are
    really invalid.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], without_text: Container[int] = ()
    ) -> None:
        self._decode = decode
        self._without_text = without_text  # special tokens: no context for others either
        self._shown: list[int] = []  # tokens whose text is out: context for the next ones
        self._held: list[int] = []
        self._broken = 0

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now complete."""
        if token_id in self._without_text:
            return ""
        self._held.append(token_id)
        new = self._new_text()
        self._broken = self._broken + 1 if new.endswith(BROKEN) else 0
        if not new or 0 < self._broken < _MAX_HELD:
            return ""
        self._advance()
        return new

    def finish(self) -> str:
        """End the stream; return what was held back, less half a character at its end."""
        new = self._new_text().rstrip(BROKEN) if self._held else ""
        self._advance()
        return new

    def _new_text(self) -> str:
        before = self._decode(self._shown)
        return self._decode(self._shown + self._held)[len(before) :]

    def _advance(self) -> None:
        if self._held:
            self._shown, self._held, self._broken = self._held, [], 0
