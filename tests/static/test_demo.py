"""A real model's program computes what the model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import save_file

from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.demo.folder import demo_folder
from qinfer.core.errors import BadCheckpoint
from qinfer.core.export.make import export_model
from qinfer.core.progress import NoProgress
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import RunConfig
from static.tools import logits, opened

TEXT = "The river rises in the hills above the old town and runs for forty miles through woods."
LAYERS = 4


@pytest.fixture(scope="module")
def demo():
    try:
        return demo_folder()
    except BadCheckpoint as error:
        pytest.skip(f"the demo cannot be had: {error}")


@pytest.fixture(scope="module")
def beginning(demo, tmp_path_factory):
    """The demo's first layers: its shapes and weights, with less of the same to write and read."""
    folder = tmp_path_factory.mktemp("beginning")
    for path in demo.glob("*.json"):
        shutil.copy(path, folder)
    config = json.loads((demo / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))
    whole = Checkpoint(demo)
    kept = [name for name in whole.names() if _layer(name) < LAYERS]
    save_file({name: whole.read(name) for name in kept}, folder / "model.safetensors")
    return folder


def _layer(name):
    """The layer that has this tensor; -1 for one outside of them."""
    return int(name.split(".")[2]) if name.startswith("model.layers.") else -1


def assert_equal(folder, tmp_path, quant):
    tokens = (2 * Tokenizer.load(folder).encode(TEXT))[:30]
    expected = logits(opened(folder, quant=quant), tokens)
    with TemporaryDirectory(dir=tmp_path) as temporary:  # pytest would keep 300 MB of each
        made = Path(temporary) / "made"
        run = RunConfig(model=str(folder), quant=quant, backend="static")
        export_model(run, made, NoProgress())
        assert np.array_equal(logits(opened(made), tokens), expected)


def test_the_demo(demo, tmp_path):
    assert_equal(demo, tmp_path, "fp8")


@pytest.mark.parametrize("quant", ["none", "wint8", "a8w8c8"])
def test_the_demo_s_first_layers(beginning, tmp_path, quant):
    """Parameters of more than one piece that is summed (64 MiB)."""
    assert_equal(beginning, tmp_path, quant)
