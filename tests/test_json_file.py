"""JSON files nobody vouches for."""

import json
import os
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qinfer.core.errors import BadCheckpoint
from qinfer.core.json_file import read_json

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_junk_files(tmp_path_factory, junk):
    path = tmp_path_factory.getbasetemp() / "junk.json"
    path.write_bytes(junk)
    with suppress(BadCheckpoint):
        assert isinstance(read_json(path), dict)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{\n"a": 1,\n"b" 2}', "line 3"),  # not a comma at the end: 3.13 reports its own line
        (b"", "line 1"),
        (b"[1]", "holds a list"),
        (b'{"a":\n"\xff"}', "line 2: not UTF-8"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 9999 + b"}", "not valid JSON"),
        (b'{"a": "' + b"x" * 200 + b'"}', "larger than 150 bytes"),
    ],
)
def test_files_that_are_no_json(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        read_json(path, 150 if b"xxx" in content else 2**24)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_missing_and_special_files(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"there is no config\.json in"):
        read_json(tmp_path / "config.json")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(BadCheckpoint, match="not an ordinary file"):
            read_json(path)
