"""The first Qwen's vocabulary, the real one, against tiktoken."""

import base64
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinfer.core.errors import BadCheckpoint
from qinfer.core.text.tokenizer import Tokenizer

tiktoken = pytest.importorskip("tiktoken")

# From Qwen's tokenization_qwen.py.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = {
    "latin": "The quick brown fox can't jump; naïve façades, Łódź, 1234567890 km².",
    "chinese": "人工智能正在改变世界,通义千问是一个大型语言模型。第12章",
    "japanese": "吾輩は猫である。名前はまだ無い。カタカナとひらがな",
    "korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "cyrillic": "Все люди рождаются свободными и равными в своём достоинстве.",  # noqa: RUF001
    "arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "hebrew": "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "devanagari": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता",
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",  # noqa: RUF001
    "georgian": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 ☕️ 🤷🏽‍♀️ \U0001f9d1\u200d\U0001f4bb",
    "code": "def f(x: int) -> str:\n\treturn f'{x:>8}'  # ok\r\n\n\n    if a != b && c <= 3.1e-9;",
    "decomposed": unicodedata.normalize("NFD", "naïve façades, Łódź 모든 Ångström"),
    "spaces": "  a   b \t\t c\u00a0d\u3000e \n \n  f   ",
}


@pytest.fixture(scope="module")
def path():
    spec = find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip("the dashscope wheel, which has the vocabulary, is not installed")
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@pytest.fixture(scope="module")
def ours(path):
    return Tokenizer.load(path.parent)


@pytest.fixture(scope="module")
def theirs(path):
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    return tiktoken.Encoding("qwen", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)


def expected(theirs, text):
    return theirs.encode(unicodedata.normalize("NFC", text), allowed_special="all")


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_cut_as_tiktoken_does_and_come_back(name, ours, theirs):
    text = TEXTS[name]
    ids = ours.encode(text)
    assert ids == expected(theirs, text)
    assert ours.decode(ids) == unicodedata.normalize("NFC", text)
    stream = ours.text_stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == unicodedata.normalize("NFC", text)
    assert b"".join(map(ours.token_bytes, ids)) == unicodedata.normalize("NFC", text).encode()


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=60) | st.text("abcdefgh i'sST1,.\n", max_size=80))
def test_any_text(ours, theirs, text):
    assert ours.encode(text) == expected(theirs, text)


def test_long_words(ours, theirs):
    for text in ("ha" * 3000, "ö" * 999, "0" * 500, "=" * 777, "aAbBcC" * 400, "\n" * 300):
        assert ours.encode(text) == expected(theirs, text)


def test_special_tokens(ours, theirs):
    text = "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|extra_0|><|extra_204|><|extra_205|>"
    ids = ours.encode(text)
    assert ids == expected(theirs, text)
    assert [i for i in ids if i > 151642] == [151644, 151645, 151643, 151646, 151850]
    assert ours.decode(ids) == "user\nHi\n<|extra_205|>"
    assert ours.eos_token_ids == (151645,)
    assert ours.vocab_size == 151851


def line(token, rank):
    return base64.b64encode(token) + b" %d\n" % rank


BYTES = b"".join(line(bytes([byte]), byte) for byte in range(256))


def test_a_small_vocabulary(tmp_path):
    tokens = [line(b"ab", 256), line(b"abc", 257), line(b"uvw", 258)]
    (tmp_path / "qwen.tiktoken").write_bytes(BYTES + b"".join(tokens))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("xabcab") == [120, 257, 256]
    # No merges lead there: only a word that is this token becomes it.
    assert tokenizer.encode("uvw") == [258]
    assert tokenizer.encode("uvwx") == [117, 118, 119, 120]
    assert tokenizer.encode("<|im_end|>") == [261]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "byte 0 has no token"),
        (line(b"a", 0), "byte 0 has no token"),
        (b"!!! 0", "line 1 is not the token of rank 0"),
        (line(b"a", 0) + b"YQ==\n", "line 2 is not the token of rank 1"),
        (line(b"a", 1), "line 1 is not"),
        (line(b"a", 0) + line(b"a", 1), "line 2 is not"),
        (line(b"", 0), "line 1 is not"),
        (b"YQ== x\n", "line 1 is not"),
        (BYTES + b"\xff\xfe 256", "line 257 is not"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, words):
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "qwen.tiktoken") in caught.value.message
    assert caught.value.remedy
