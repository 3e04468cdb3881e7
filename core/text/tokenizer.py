"""Text to tokens and back, over the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qinfer.core.errors import BadInput
from qinfer.core.text.byte_level import BYTE_OF
from qinfer.core.text.detokenizer import ByteStream, TextStream, WindowStream

if TYPE_CHECKING:
    import tokenizers

MAX_TEXT_BYTES = 16 * 2**20


class Tokenizer:
    """A checkpoint's tokenizer.

    ``chat_template`` is the checkpoint's Jinja template, or None. ``special_tokens`` maps names
    of tokenizer_config.json ("bos_token", "eos_token", …) to their text. ``eos_token_ids`` is
    the id of "eos_token", if the checkpoint names one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        # Lengths saved by whoever trained the tokenizer must not cut or pad a user's prompt.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._visible: dict[int, bytes] = {}
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        eos = backend.token_to_id(self.special_tokens.get("eos_token", ""))
        self.eos_token_ids: tuple[int, ...] = () if eos is None else (eos,)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a checkpoint folder's tokenizer. Raises BadCheckpoint with a remedy."""
        from qinfer.core.text.tokenizer_files import read_tokenizer

        backend, special_tokens, template = read_tokenizer(Path(folder))
        return cls(backend, special_tokens=special_tokens, chat_template=template)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model's table may be padded to more."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token(self) -> str:
        """Text of the token tokenizer_config.json calls "bos_token", or ""."""
        return self.special_tokens.get("bos_token", "")

    @property
    def eos_token(self) -> str:
        """Text of the token tokenizer_config.json calls "eos_token", or ""."""
        return self.special_tokens.get("eos_token", "")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Special tokens written in it are recognised.

        ``add_special_tokens`` lets tokenizer.json's post-processor add its own (Qwen's adds
        none); leave it out for a rendered chat template, which has written them itself.
        Raises BadInput for a text that is too long or isn't Unicode.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise BadInput(
                f"the text has half a surrogate pair at character {error.start}, "
                "which is not valid Unicode",
                remedy="Remove or repair that character.",
            ) from None
        if size > MAX_TEXT_BYTES:
            raise BadInput(
                f"the text is {size:,} bytes long; at most {MAX_TEXT_BYTES:,} can be tokenized",
                remedy="Shorten it: it is far beyond any model's context.",
            )
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens. Bytes that aren't UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself, special ones included; "" for an id without a token."""
        return str(self._backend.decode([token_id], skip_special_tokens=False))

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, special ones included; exact for byte-level vocabularies."""
        if not self._byte_level:
            return self.token_text(token_id).encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(BYTE_OF[char] for char in token)
        except KeyError:  # an added token, written as it is
            return str(token).encode()

    def text_stream(self) -> TextStream:
        """A new stream that turns tokens into text as they come."""
        if self._byte_level:
            return ByteStream(self._visible_bytes)
        return WindowStream(self.decode, self._special_ids)

    def _visible_bytes(self, token_id: int) -> bytes:
        """A token's part of a text, looked up in the library once."""
        found = self._visible.get(token_id)
        if found is None:
            found = b"" if token_id in self._special_ids else self.token_bytes(token_id)
            self._visible[token_id] = found
        return found

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def _byte_level(self) -> bool:
        from tokenizers.decoders import ByteLevel

        return isinstance(self._backend.decoder, ByteLevel)
