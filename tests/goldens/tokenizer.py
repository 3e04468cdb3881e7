"""A small byte-level BPE tokenizer in Qwen2's format, so that tiny models read text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

MERGES = """
Ġ t|Ġ a|h e|i n|r e|o n|Ġt he|e r|Ġ s|a t|Ġ w|Ġ o|e n|Ġ c|i t|i s|a n|o r|e s|Ġ b|e d|Ġ f|in g
""".strip()

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class SpecialIds(NamedTuple):
    """Ids of the special tokens."""

    end_of_text: int
    im_start: int
    im_end: int


def write_tokenizer(folder: Path, vocab_size: int) -> SpecialIds:
    """Write tokenizer.json and tokenizer_config.json with at most ``vocab_size`` tokens.

    From 259 tokens on every byte has one, so any text survives encoding and decoding; below, only
    ASCII's printable characters and the line feed do. Ids past the specials are padding, as in
    Qwen's own checkpoints.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    vocab, merges = _vocabulary(vocab_size)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIALS]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_tokenizer_config(folder, len(vocab))
    return SpecialIds(*(tokenizer.token_to_id(text) for text in SPECIALS))


def _vocabulary(vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte tokens, then one token a merge, leaving room for the specials."""
    from tokenizers import pre_tokenizers as pre

    alphabet = sorted(pre.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(SPECIALS):
        alphabet = [chr(code) for code in range(0x21, 0x7F)] + ["Ċ", "Ġ"]
    room = vocab_size - len(SPECIALS) - len(alphabet)
    if room < 0:
        raise ValueError(f"a tokenizer needs a vocabulary of at least {vocab_size - room}")
    merges = []
    for pair in MERGES.split("|")[:room]:
        left, right = pair.split(" ")
        merges.append((left, right))
    tokens = alphabet + [left + right for left, right in merges]
    return {token: index for index, token in enumerate(tokens)}, merges


def _write_tokenizer_config(folder: Path, first_special: int) -> None:
    added = {
        str(first_special + index): {"content": text, "special": True}
        for index, text in enumerate(SPECIALS)
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_prefix_space": False,
        "model_max_length": 512,
        "chat_template": CHATML,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
