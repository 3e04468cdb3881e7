"""Fixtures of the quantiser's tests."""

import pytest

from goldens import tiny
from qinfer.cuda_ops import table
from quantize.tools import CASE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("q") / "m", CASE, shards=2)


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    table.use(table.REFERENCE)
