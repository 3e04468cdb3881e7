"""What a line of a batch asks for."""

from pathlib import Path

import pytest

from qinfer.core.batch import lines as batch_lines
from qinfer.core.batch.lines import BatchSettings, line_params, line_prompt, parse_line
from qinfer.core.errors import BadInput
from qinfer.core.params import SamplingParams

SETTINGS = BatchSettings(params=SamplingParams())


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "a"}, [("user", "a")]),
        ({"prompt": "a", "system": "s"}, [("system", "s"), ("user", "a")]),
        ({"src": "a", "tgt": "b"}, [("user", "a")]),
        ({"src": ["a"], "tgt": ["b"]}, [("user", "a")]),
        ({"src": ["a", "c"], "tgt": ["b", "d"]},
         [("user", "a"), ("assistant", "b"), ("user", "c")]),
        ({"src": ["a", "c"], "tgt": "b"}, [("user", "a"), ("assistant", "b"), ("user", "c")]),
        ({"messages": [{"role": "user", "content": "a"}]}, [("user", "a")]),
    ],
)  # fmt: skip
def test_forms_of_a_prompt(record: dict, expected: list[tuple[str, str]]) -> None:
    prompt = line_prompt(record, SETTINGS)
    assert [(m["role"], m["content"]) for m in prompt] == expected


def test_system_and_raw_of_the_command() -> None:
    system = BatchSettings(params=SamplingParams(), system="S")
    assert line_prompt({"prompt": "a"}, system)[0] == {"role": "system", "content": "S"}
    assert line_prompt({"prompt": "a", "system": "T"}, system)[0]["content"] == "T"
    talk = {"messages": [{"role": "system", "content": "U"}, {"role": "user", "content": "a"}]}
    assert line_prompt(talk, system) == talk["messages"]
    raw = BatchSettings(params=SamplingParams(), raw=True)
    assert line_prompt({"prompt": "a"}, raw) == line_prompt({"src": "a"}, raw) == "a"
    with pytest.raises(BadInput, match="--raw"):
        line_prompt(talk, raw)


def test_parameters_of_a_line() -> None:
    assert line_params({"prompt": "a"}, SETTINGS) is SETTINGS.params
    changed = line_params({"params": {"max_tokens": 3, "logit_bias": {"7": 1}}}, SETTINGS)
    assert (changed.max_tokens, changed.logit_bias) == (3, {7: 1})


def test_long_lines_are_skipped_in_pieces(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "in.jsonl"
    monkeypatch.setattr(batch_lines, "MAX_LINE_BYTES", 10)
    path.write_bytes(b"a\n" + b"b" * 35 + b"\n" + b"c" * 10 + b"\n" + b"d" * 11 + b"\ne")
    with path.open("rb") as file:
        assert list(batch_lines.read_lines(file)) == [b"a", None, b"c" * 10, None, b"e"]
    with pytest.raises(BadInput):
        parse_line(None)
