"""The demo's tokenizer.json and tokenizer_config.json, from what a GGUF file says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

_CONTROL = 3
"""GGUF's token type of special tokens."""


def write_tokenizer(
    folder: Path,
    *,
    tokens: Sequence[str],
    kinds: Sequence[int],
    merges: Sequence[str],
    chat_template: str,
    max_length: int,
) -> None:
    """Write a byte-level BPE tokenizer with GPT-2's pattern and every digit on its own.

    ``tokens`` by id with their GGUF types in ``kinds``; ``merges`` in order, as "left right".
    """
    _save_tokenizer(folder / "tokenizer.json", tokens, kinds, merges)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": chat_template,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _save_tokenizer(
    path: Path, tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str]
) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        pairs.append((left, right))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.save(str(path))
