"""A compiler that compiles nothing and writes down how it was called."""

import pytest

from building.tools import COMPILER, script


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """The folder of a fake compiler, which $CXX is; the cache is empty."""
    folder = tmp_path / "compiler"
    folder.mkdir()
    monkeypatch.setenv("CXX", str(script(folder / "c++", COMPILER)))
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QINFER_TARGET", raising=False)
    return folder
