"""What ``qinfer doctor`` says of the cache."""

import os

import pytest

from qinfer.core.cli.doctor import EXAMINATIONS


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """What doctor finds for a cache at a path below an empty folder."""
    (examine,) = (one for one in EXAMINATIONS if one.__name__ == "_cache")

    def found(name):
        monkeypatch.setenv("QINFER_CACHE", str(tmp_path / name))
        (finding,) = examine()
        return finding

    return found


def test_a_cache_that_can_be_made_and_one_that_cannot(cache, tmp_path):
    assert cache("new").state in ("ok", "warning")  # by the room on this disk
    (tmp_path / "file").touch()
    finding = cache("file/new")
    assert finding.state == "problem"
    assert f"see {tmp_path / 'file'}" in finding.value


def test_a_cache_in_an_image_is_used_as_it_is(cache, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root, too
    assert cache("old").state == "warning"
    assert "what is there is used" in cache("old").value
    assert cache("new").state == "problem"
