"""Stop conditions and held-back text, over a vocabulary of single characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinfer.core.engine.answer import Answer
from qinfer.core.engine.sequence import Sequence
from qinfer.core.params import SamplingParams

EOS = 256


class Characters:
    """A stand-in tokenizer: token n is character n."""

    def text_stream(self):
        return self

    def push(self, token):
        return chr(token)

    def finish(self):
        return ""


def answer(text, *, eos=True, **params):
    """Feed a text's characters; returns (pieces shown, the answer)."""
    filled = SamplingParams(**{"max_tokens": 1000} | params)
    seq = Sequence(
        request_id=1,
        index=0,
        prompt=[1],
        params=filled,
        seed=0,
        max_tokens=filled.max_tokens,
        eos_token_ids=frozenset([EOS]) if eos else frozenset(),
    )
    result = Answer(seq, Characters())
    pieces = []
    for token in [*map(ord, text), *([EOS] if eos else [])]:
        pieces.append(result.push(token))
        if result.finish_reason:
            break
    return pieces, result


@pytest.mark.parametrize(
    ("text", "stop", "shown", "reason"),
    [
        ("hello END more", ["END"], "hello ", "END"),
        ("hello EN", ["END"], "hello EN", None),
        ("ENEND", ["END"], "EN", "END"),
        ("aab", ["ab", "aab"], "", "aab"),
        ("x##y", ["##", "#"], "x", "#"),
        ("abc", [], "abc", None),
    ],
)
def test_stop_texts(text, stop, shown, reason):
    pieces, result = answer(text, stop=stop)
    assert "".join(pieces) == shown
    assert (result.finish_reason, result.stop_reason) == ("stop", reason)


@given(
    text=st.text("ab#", max_size=30),
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
)
def test_nothing_shown_is_ever_part_of_a_stop_text(text, stops):
    pieces, result = answer(text, stop=stops)
    shown = "".join(pieces)
    hits = [text.find(stop) for stop in stops if stop in text]
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not hits:
        assert shown == text
        return
    # The text is cut where the stop text begins that is complete first.
    assert result.stop_reason in stops
    assert shown == text[: len(shown)]
    assert text[len(shown) :].startswith(result.stop_reason)
    assert len(shown) + len(result.stop_reason) == min(ends)


def test_text_that_might_stop_is_held_back():
    pieces, _ = answer("aEbENDc", stop=["END"])
    assert pieces[:3] == ["a", "", "Eb"]


def test_end_token_ends_unless_ignored():
    pieces, result = answer("ab")
    assert ("".join(pieces), result.finish_reason, result.stop_reason) == ("ab", "stop", None)


def test_stop_token_ids_are_named_and_not_shown():
    pieces, result = answer("abc", stop_token_ids=[ord("b")])
    assert "".join(pieces) == "a"
    assert (result.finish_reason, result.stop_reason) == ("stop", ord("b"))


def test_length_shows_everything_held():
    pieces, result = answer("abEN", stop=["END"], max_tokens=4)
    assert ("".join(pieces), result.finish_reason) == ("abEN", "length")


def test_stop_texts_wait_for_min_tokens():
    pieces, result = answer("#a#b", stop=["#"], min_tokens=2)
    assert result.stop_reason == "#"
    assert "".join(pieces) in ("", "#a")
    assert len(result.sequence.output) >= 2
