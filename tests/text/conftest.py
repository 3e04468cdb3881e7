"""A small byte-level BPE tokenizer, trained here."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import qinfer.core.text.tokenizer
from qinfer.core.text.tokenizer_files import _QWEN2_SPLIT

CORPUS = [
    "the quick brown fox jumps over the lazy dog, then the dog sleeps. 12345",
    "中国的首都是北京。日本の首都は東京です。",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 naïve café über straße",
    "def main(args):\n    return [int(x) for x in args]\n\n",
]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False)])
    return tokenizer


@pytest.fixture
def folder(backend: Tokenizer, tmp_path: Path) -> Path:
    """A checkpoint folder with tokenizer.json."""
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": None, "chat_template": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture(scope="session")
def tokenizer(backend: Tokenizer) -> "qinfer.core.text.tokenizer.Tokenizer":
    return qinfer.core.text.tokenizer.Tokenizer(backend, special_tokens={"eos_token": "<|im_end|>"})
