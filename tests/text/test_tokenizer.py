"""The tokenizer's files, and encoding and decoding."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from qinfer.core.errors import BadCheckpoint, BadInput
from qinfer.core.text import tokenizer as module
from qinfer.core.text.tokenizer import Tokenizer

TEXTS = [
    "",
    "the quick fox",
    "中国的首都 北京",
    "👩‍👩‍👧‍👦 x",
    " a\n\n\tb  c ",
    "<|im_start|>user\nhi<|im_end|>",
]


def test_loads_and_names(folder: Path, backend: tokenizers.Tokenizer) -> None:
    loaded = Tokenizer.load(folder)
    end = backend.token_to_id("<|im_end|>")
    assert loaded.eos_token_ids == (end,)
    assert (loaded.eos_token, loaded.bos_token) == ("<|im_end|>", "")
    assert loaded.chat_template == "T"
    assert loaded.vocab_size == backend.get_vocab_size()
    assert loaded.encode("<|im_end|>") == [end]
    assert loaded.decode([end]) == ""
    assert loaded.token_text(end) == "<|im_end|>"
    assert loaded.token_text(10**6) == "" == loaded.decode([10**6])


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    for special in ("<|im_start|>", "<|im_end|>"):
        plain = text.replace(special, "")
        text = text if special in text else plain
    ids = tokenizer.encode(text)
    expected = text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert tokenizer.decode(ids) == expected
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


@given(st.text(max_size=60))
def test_round_trip_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        with pytest.raises(BadInput, match="surrogate"):
            tokenizer.encode(text)
        return
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode() == text


def test_paddlenlp_folder_gives_the_same_ids(backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    """vocab.json + merges.txt alone behave as tokenizer.json does."""
    backend.model.save(str(tmp_path))
    added = {
        str(token_id): {"content": token.content, "special": token.special}
        for token_id, token in backend.get_added_tokens_decoder().items()
    }
    config = {"added_tokens_decoder": added, "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    built = Tokenizer.load(tmp_path)
    whole = Tokenizer(backend)
    for text in [*TEXTS, "x <tool call> y 123's 'LL"]:
        assert built.encode(text) == whole.encode(text)
        assert built.decode(built.encode(text)) == whole.decode(whole.encode(text))
    assert built.eos_token_ids == (backend.token_to_id("<|im_end|>"),)


def test_standard_special_tokens_without_a_config(
    backend: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    backend.model.save(str(tmp_path))
    built = Tokenizer.load(tmp_path)
    first = backend.token_to_id("<|endoftext|>")
    assert built.encode("<|endoftext|><|im_start|><|im_end|>") == [first, first + 1, first + 2]


def test_saved_truncation_is_not_applied(backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    copied = tokenizers.Tokenizer.from_str(backend.to_str())
    copied.enable_truncation(4)
    copied.enable_padding(length=50)
    copied.save(str(tmp_path / "tokenizer.json"))
    text = "the quick brown fox jumps"
    assert Tokenizer.load(tmp_path).encode(text) == Tokenizer(backend).encode(text)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"chat_template": "A"}, "A"),
        ({"chat_template": [{"name": "x", "template": "X"}, {"name": "default", "template": "D"}]},
         "D"),
        ({"chat_template": [{"name": "only", "template": "O"}]}, "O"),
        ({"chat_template": []}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_template_in_the_config(folder: Path, config: dict, expected: str | None) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(folder).chat_template == expected


def test_newer_places_of_the_template_win(folder: Path) -> None:
    (folder / "chat_template.json").write_text('{"chat_template": "J"}')
    assert Tokenizer.load(folder).chat_template == "J"
    (folder / "chat_template.jinja").write_text("{{ 'jinja' }}")
    assert Tokenizer.load(folder).chat_template == "{{ 'jinja' }}"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"tokenizer.json is missing.*merges.txt") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.exit_code == 5
    assert "Copy tokenizer.json" in caught.value.remedy


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b'{"model": {}}', b"[" * 10**5])
def test_damaged(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    if (name, data) == ("tokenizer_config.json", b'{"model": {}}'):
        return  # a valid object, if an odd one
    with pytest.raises(BadCheckpoint, match=name):
        Tokenizer.load(folder)


def test_random_damage_never_escapes(folder: Path) -> None:
    """Bytes changed anywhere in tokenizer.json: loads, or says which file is bad."""
    path = folder / "tokenizer.json"
    good = path.read_bytes()
    rng = random.Random(7)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.choice([1, 3])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            Tokenizer.load(folder)
        except BadCheckpoint as error:
            assert "tokenizer.json" in str(error)  # noqa: PT017


def test_config_of_another_checkpoint(backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    backend.model.save(str(tmp_path))
    config = {"added_tokens_decoder": {"999999": {"content": "<|im_end|>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match="999999"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("table", [{"x": {"content": "a"}}, {"1": {}}, {"1": 5}, [1]])
def test_bad_added_tokens(backend: tokenizers.Tokenizer, tmp_path: Path, table: object) -> None:
    backend.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": table}))
    with pytest.raises(BadCheckpoint, match="tokenizer_config"):
        Tokenizer.load(tmp_path)


def test_too_long(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 10)
    with pytest.raises(BadInput, match="12 bytes"):
        tokenizer.encode("中" * 4)
