"""A real model's program computes what the model does."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from qinfer.core.demo.folder import demo_folder
from qinfer.core.errors import BadCheckpoint
from qinfer.core.export.make import export_model
from qinfer.core.progress import NoProgress
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import RunConfig
from static.tools import logits, opened

TEXT = "The river rises in the hills above the old town and runs for forty miles through woods."


@pytest.fixture(scope="module")
def demo():
    try:
        return demo_folder()
    except BadCheckpoint as error:
        pytest.skip(f"the demo cannot be had: {error}")


@pytest.mark.parametrize("quant", ["none", "wint8", "a8w8c8", "fp8"])
def test_the_demo(demo, tmp_path, quant):
    tokens = (2 * Tokenizer.load(demo).encode(TEXT))[:30]
    expected = logits(opened(demo, quant=quant), tokens)
    with TemporaryDirectory(dir=tmp_path) as folder:  # pytest would keep 300 MB of each
        made = Path(folder) / "made"
        run = RunConfig(model=str(demo), quant=quant, backend="static")
        export_model(run, made, NoProgress())
        assert np.array_equal(logits(opened(made), tokens), expected)
