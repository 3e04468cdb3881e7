"""Streams never show half a character and join to the decoded whole."""

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from qinfer.core.text.detokenizer import ByteStream, WindowStream
from qinfer.core.text.tokenizer import Tokenizer

# Joined emoji, regional flags, combining marks, CJK, all UTF-8 lengths.
HARD = "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪 é é 中国 かな ß x \U0001d518 \U0010ffff \u07ff\uffff"


def trimmed(whole: bytes) -> str:
    """Decoded bytes less an incomplete character at the end."""
    for length in range(1, 4):
        tail = whole[-length:]
        if len(tail) < length:
            break
        need = 2 if 0xC2 <= tail[0] < 0xE0 else 3 if 0xE0 <= tail[0] < 0xF0 else 4
        if 0xC2 <= tail[0] <= 0xF4 and length < need:
            rest = (tail + b"\x80" * 4)[:need]
            variants = [rest, tail + b"\xbf" * (need - length), tail[:1] + b"\x90" + rest[2:]]
            if any(valid(v) and v.startswith(tail) for v in variants):
                whole = whole[:-length]
            break
    return whole.decode("utf-8", errors="replace")


def valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    return {
        tokenizer.token_bytes(i)[0]: i
        for i in range(tokenizer.vocab_size)
        if len(tokenizer.token_bytes(i)) == 1
    }


def joined(stream: ByteStream | WindowStream, ids: list[int]) -> str:
    pieces = [stream.push(token_id) for token_id in ids]
    return "".join(pieces) + stream.finish()


@given(st.binary(max_size=40))
@example(b"\xed\xa0")  # how a surrogate would begin
@example(b"ab\xed\xbf")
@example(b"\xed\x9f")  # how U+D7FF begins
@settings(max_examples=400)
def test_any_bytes(tokenizer: Tokenizer, data: bytes) -> None:
    ids = [byte_ids_cached(tokenizer)[byte] for byte in data]
    assert joined(tokenizer.text_stream(), ids) == trimmed(data)
    assert tokenizer.decode(ids) == data.decode("utf-8", errors="replace")


@given(st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(HARD))))
@settings(max_examples=200)
def test_any_text_as_single_bytes_and_as_tokens(tokenizer: Tokenizer, text: str) -> None:
    singles = [byte_ids_cached(tokenizer)[byte] for byte in text.encode()]
    assert joined(tokenizer.text_stream(), singles) == text
    ids = tokenizer.encode(text)
    assert joined(tokenizer.text_stream(), ids) == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 430), max_size=60))
@settings(max_examples=300)
def test_any_tokens(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Also tokens that begin and end inside a character, special ones and ids without a token."""
    special = {tokenizer.encode(t)[0] for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    data = b"".join(tokenizer.token_bytes(i) for i in ids if i not in special)
    assert joined(tokenizer.text_stream(), ids) == trimmed(data)
    whole = tokenizer.decode(ids)
    assert whole == data.decode("utf-8", errors="replace")
    assert whole.startswith(joined(tokenizer.text_stream(), ids))


@pytest.mark.parametrize("cut", range(len(HARD.encode()) + 1))
def test_every_cut_of_hard_text(tokenizer: Tokenizer, cut: int) -> None:
    """After any byte the text so far is a prefix of the whole, whole characters only."""
    data = HARD.encode()
    stream = tokenizer.text_stream()
    shown = "".join(stream.push(byte_ids_cached(tokenizer)[byte]) for byte in data[:cut])
    assert shown == data[:cut].decode("utf-8", errors="ignore")
    assert HARD.startswith(shown)
    rest = "".join(stream.push(byte_ids_cached(tokenizer)[byte]) for byte in data[cut:])
    assert shown + rest + stream.finish() == HARD


def test_invalid_bytes_are_shown_without_delay(tokenizer: Tokenizer) -> None:
    stream = tokenizer.text_stream()
    assert stream.push(byte_ids_cached(tokenizer)[0xFF]) == "\ufffd"


def sentencepiece() -> Tokenizer:
    """Word pieces with a space mark, and single bytes: a token's text depends on its place."""
    words = ["▁the", "▁fox", "s", "▁", "中", "▁é"]
    vocab = {word: i for i, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend)


SENTENCEPIECE = sentencepiece()
WORDS = ["▁the", "▁fox", "s", "▁", "中", "▁é"]


@given(st.lists(st.one_of(st.integers(0, 5), st.sampled_from(HARD), st.just(-1)), max_size=30))
@settings(max_examples=300)
def test_window_stream_joins_to_the_whole(parts: list[int | str]) -> None:
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += [6 + byte for byte in part.encode()]
        else:
            ids.append(part if part >= 0 else 6 + 256)
    stream = SENTENCEPIECE.text_stream()
    assert isinstance(stream, WindowStream)
    assert joined(stream, ids) == SENTENCEPIECE.decode(ids)


def test_window_stream_shows_invalid_bytes_after_four_tokens() -> None:
    stream = SENTENCEPIECE.text_stream()
    pieces = [stream.push(6 + 0xE4) for _ in range(8)]
    assert pieces[:3] == ["", "", ""]
    assert "".join(pieces).count("\ufffd") == 8


_IDS: dict[int, dict[int, int]] = {}


def byte_ids_cached(tokenizer: Tokenizer) -> dict[int, int]:
    return _IDS.setdefault(id(tokenizer), byte_ids(tokenizer))
