"""Texts to measure or calibrate with: a file of the user's, or the small sets that come along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qinfer.core.batch.lines import parse_line, read_lines
from qinfer.core.errors import BadInput
from qinfer.core.text.chat import chatml, check_messages, render_chat
from qinfer.core.text.tokenizer import Tokenizer

TEXTS = Path(__file__).parent / "corpora"
EVALUATION, CALIBRATION = TEXTS / "evaluation.jsonl", TEXTS / "calibration.jsonl"
"""Written for this project: six and seven thousand tokens (as the demo counts them) of prose,
letters, code, sums and conversations. Neither has a passage of the other."""


def read_corpus(path: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of each document in a file.

    A ``.jsonl`` file has one document a line, as {"text": …}, {"messages": […]} (through the chat
    template) or PaddleNLP's {"src": …, "tgt": …}; any other file is one document. Raises BadInput
    naming the line, also where there is nothing to read.
    """
    try:
        texts = list(_lines(path, tokenizer)) if path.suffix == ".jsonl" else [_whole(path)]
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror or error}", remedy="Name a text file."
        ) from error
    documents = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    documents = [document for document in documents if len(document) > 1]
    if not documents:
        raise BadInput(f"{path} has no text", remedy="Give a file with some paragraphs of text.")
    return documents


def windows(documents: Sequence[Sequence[int]], length: int, limit: int = 0) -> list[list[int]]:
    """The documents cut into pieces of at most ``length`` tokens, none shorter than 2.

    ``limit``: stop after that many tokens; 0 takes all.
    """
    pieces: list[list[int]] = []
    room = limit or sum(map(len, documents))
    for document in documents:
        for start in range(0, len(document), length):
            piece = list(document[start : start + min(length, room)])
            if len(piece) > 1:
                pieces.append(piece)
                room -= len(piece)
            if room < 2:
                return pieces
    return pieces


def _whole(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not valid UTF-8 (at byte {error.start})") from None


def _lines(path: Path, tokenizer: Tokenizer) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(read_lines(file), 1):
            if line == b"":
                continue
            try:
                yield _text(parse_line(line), tokenizer)
            except BadInput as error:
                raise BadInput(
                    f"{path}, line {number}: {error.message}",
                    remedy=error.remedy
                    or 'A line is {"text": …}, {"messages": […]} or {"src": …, "tgt": …}.',
                ) from None


def _text(record: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    if "messages" in record:
        return _rendered(record["messages"], tokenizer)
    if "src" in record:
        sources, targets = (_listed(record.get(key, [])) for key in ("src", "tgt"))
        turns = [
            {"role": role, "content": content}
            for pair in zip(sources, targets, strict=False)
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
        turns += [{"role": "user", "content": text} for text in sources[len(targets) :]]
        return _rendered(turns, tokenizer)
    if isinstance(record.get("text"), str):
        return str(record["text"])
    raise BadInput('it has neither "text" nor "messages" nor "src"')


def _rendered(messages: Any, tokenizer: Tokenizer) -> str:
    checked = check_messages(messages)
    if tokenizer.chat_template is None:
        return chatml(checked).removesuffix("<|im_start|>assistant\n")
    return render_chat(
        tokenizer.chat_template,
        checked,
        add_generation_prompt=False,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
