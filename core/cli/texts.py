"""Where ``run`` and ``chat`` get their texts from, checked before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import sys
from typing import BinaryIO

from qinfer.core.errors import BadInput
from qinfer.core.text.chat import check_messages

MAX_BYTES = 16 * 2**20


def decode(data: bytes, where: str) -> str:
    """Bytes as UTF-8 text, without a byte order mark. Raises BadInput naming the bad byte."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"{where} is longer than {MAX_BYTES:,} bytes", remedy="Shorten it.")
    try:
        return data.decode("utf-8").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{where} is not valid UTF-8: byte {error.start} is 0x{data[error.start]:02x}",
            remedy="Convert it first, for example with iconv -f LATIN1 -t UTF-8.",
        ) from None


def read_stdin(what: str) -> str:
    """All of standard input, without the last line's end."""
    text = decode(_read(sys.stdin.buffer), f"{what} on standard input")
    return text.removesuffix("\n").removesuffix("\r")


def check_prompt(prompt: str) -> str:
    """A prompt that has something in it and is Unicode. Raises BadInput."""
    # Python hands on bytes of an argument that aren't UTF-8 as halves of surrogate pairs.
    decode(os.fsencode(prompt) if not prompt.isascii() else b"", "the prompt")
    if not prompt.strip():
        raise BadInput("the prompt is empty", remedy='For example: qinfer run "Hello"')
    return prompt


def read_conversation(path: str) -> list[dict[str, str]]:
    """Messages from a JSON file, or from standard input for "-". Raises BadInput.

    The file holds a list of messages, or an object with one under "messages".
    """
    if path == "-":
        text = read_stdin("the conversation")
    else:
        try:
            with open(path, "rb") as file:
                text = decode(_read(file), path)
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"the conversation in {path} is not JSON: {error}",
            remedy='For example: [{"role": "user", "content": "Hello"}]',
        ) from None
    return check_messages(value.get("messages") if isinstance(value, dict) else value)


def with_system(messages: list[dict[str, str]], system: str) -> list[dict[str, str]]:
    """A conversation headed by this system message, if it isn't empty and none is there."""
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _read(file: BinaryIO) -> bytes:
    return file.read(MAX_BYTES + 1)
