"""The files a checkpoint keeps its tokenizer in: Hugging Face's and PaddleNLP's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from qinfer.core.errors import BadCheckpoint
from qinfer.core.text import tiktoken_file

T = TypeVar("T")

MAX_JSON_BYTES = 64 * 2**20
_REMEDY = "Copy the file again from where the checkpoint came from."

# Qwen2's split into words, numbers digit by digit, punctuation and white space
# (transformers, models/qwen2/tokenization_qwen2.py).
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def read_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, str], str | None]:
    """The tokenizer, the named special tokens and the chat template of a checkpoint folder."""
    config = _read_json(folder / "tokenizer_config.json")
    names = {**_read_json(folder / "special_tokens_map.json"), **config}
    special = {name: _content(value) for name, value in names.items() if name.endswith("_token")}
    special = {name: text for name, text in special.items() if text}
    if not special and (folder / tiktoken_file.NAME).is_file():
        special = {"eos_token": "<|im_end|>"}  # the first Qwen's chat ends there
    return _read_backend(folder, config), special, _chat_template(folder, config)


def _read_backend(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return _parse(whole, lambda: tokenizers.Tokenizer.from_file(str(whole)))
    if (folder / tiktoken_file.NAME).is_file():
        return _qwen(folder / tiktoken_file.NAME)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    missing = [path.name for path in (vocab, merges) if not path.is_file()]
    if missing:
        raise BadCheckpoint(
            f"no tokenizer in {folder}: tokenizer.json is missing, and so is "
            + " and ".join(missing),
            remedy="Copy tokenizer.json (or vocab.json and merges.txt) into the folder from "
            "where the checkpoint came from.",
        )
    model = _parse(vocab, lambda: models.BPE.from_file(str(vocab), str(merges)))
    return _qwen2(model, _added_tokens(config, folder), folder)


def _qwen2(
    model: models.BPE, added: Mapping[int, AddedToken], folder: Path
) -> tokenizers.Tokenizer:
    """Qwen2's byte-level BPE around a vocabulary, with its added tokens."""
    backend = _byte_level(model)
    if not added:
        backend.add_special_tokens([AddedToken(text, special=True) for text in _QWEN2_SPECIAL])
    for token_id, token in sorted(added.items()):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != token_id:
            raise BadCheckpoint(
                f"{folder / 'tokenizer_config.json'} gives {token.content!r} the id {token_id}, "
                f"but vocab.json leaves it {backend.token_to_id(token.content)}",
                remedy="The two files are of different checkpoints: copy both again.",
            )
    return backend


def _qwen(path: Path) -> tokenizers.Tokenizer:
    """The first Qwen's, whose special tokens stand in no file."""
    backend = _byte_level(_parse(path, lambda: tiktoken_file.read_tiktoken(path)))
    backend.add_special_tokens([AddedToken(text, special=True) for text in tiktoken_file.SPECIAL])
    return backend


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """The steps all Qwen tokenizers have around their vocabulary."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _added_tokens(config: Mapping[str, Any], folder: Path) -> dict[int, AddedToken]:
    """``added_tokens_decoder``: id -> token with its matching rules."""
    table = config.get("added_tokens_decoder") or {}
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")

    def parse() -> dict[int, AddedToken]:
        return {
            int(token_id): AddedToken(
                entry["content"], **{flag: bool(entry.get(flag, False)) for flag in flags}
            )
            for token_id, entry in table.items()
        }

    return _parse(folder / "tokenizer_config.json", parse)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template, newest place first: chat_template.jinja, chat_template.json, the config."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return _read_text(own)
    path = folder / "chat_template.json"
    if not path.is_file():
        path = folder / "tokenizer_config.json"
    table = config if path.name == "tokenizer_config.json" else _read_json(path)
    value = table.get("chat_template")
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        by_name = {entry.get("name"): entry.get("template") for entry in value}
        value = by_name.get("default", next(iter(by_name.values()), None))
    if value is None or isinstance(value, str):
        return value
    raise BadCheckpoint(
        f"{path}: chat_template must be text or a list of named templates, not {value!r:.80}",
        remedy=_REMEDY,
    )


def _content(value: Any) -> str:
    """A special token's text: written plainly, or in an object that has its flags too."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    text = _read_text(path)
    table = _parse(path, lambda: json.loads(text))
    if not isinstance(table, dict):
        raise BadCheckpoint(f"{path} must hold a JSON object", remedy=_REMEDY)
    return table


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BadCheckpoint(
            f"{path} is {path.stat().st_size:,} bytes long; at most {MAX_JSON_BYTES:,} are read",
            remedy=_REMEDY,
        )
    return _parse(path, lambda: path.read_text(encoding="utf-8"))


def _parse(path: Path, read: Callable[[], T]) -> T:
    """Run a reader and turn whatever it raises into one error that names the file."""
    try:
        return read()
    except BadCheckpoint:
        raise
    except BaseException as error:
        # The Rust library raises bare Exception, and where it panics a BaseException of its own.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BadCheckpoint(f"{path} cannot be read: {error}", remedy=_REMEDY) from None
        raise
