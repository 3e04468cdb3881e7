"""Fixtures of the quantiser's tests."""

import pytest

from goldens import tiny
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.cuda_ops import table
from quantize.tools import CASE, KV_FORMATS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("q") / "m", CASE, shards=2)


@pytest.fixture(scope="module")
def kv_folders(tmp_path_factory):
    """The tiny model quantised with an int8 cache, by format."""
    folder = tmp_path_factory.mktemp("kv")
    source = tiny.write_checkpoint(folder / "plain", CASE)
    for form in KV_FORMATS:
        changes = {"quant": "a8w8c8", "method": "absmax", "format": form, "tokens": 400}
        quantize(QuantizeSettings(model=str(source), **changes), folder / form, NoProgress())
    return folder


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    table.use(table.REFERENCE)
