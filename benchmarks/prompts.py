"""Prompts of an exact length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Prompt = dict[str, Any]
"""Its ``text`` and, as ``prompt``, its token ids."""

TEXT = (
    "The river rises in the hills above the old town and runs for forty miles through woods and "
    "meadows before it meets the sea. In spring the water is high and cold, and people who live "
    "near the bank watch it with some care; in summer children cross it on stones. A mill stood "
    "here once, and a stone bridge of three arches, built by masons who came from the coast. "
)


def make_prompts(model: Path, tokens: int, rounds: int, streams: int) -> list[list[Prompt]]:
    """For each round as many texts as are asked at once, of exactly so many tokens; all begin
    differently, so that no program finds the start of one in its cache."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(number: int) -> Prompt:
        text = _fill(f"{number}. Chapter:", tokens, ids)
        return {"text": text, "prompt": ids(text)}

    numbers = iter(range(1, rounds * streams + 1))
    return [[prompt(next(numbers)) for _ in range(streams)] for _ in range(rounds)]


def _fill(text: str, tokens: int, ids: Any) -> str:
    for word in (TEXT * (tokens // 40 + 1)).split():
        if len(ids(f"{text} {word}")) > tokens:
            break
        text += f" {word}"
    while len(ids(text)) < tokens:
        text += " a"
    if len(ids(text)) != tokens:
        raise ValueError(f"no text of exactly {tokens} tokens was found")
    return text
