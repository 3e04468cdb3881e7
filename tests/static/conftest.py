"""Tiny checkpoints and what is exported from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from goldens import tiny
from qinfer.core.export.make import export_model
from qinfer.core.progress import NoProgress
from qinfer.core.types import RunConfig

WIDE = replace(tiny.CASES["gqa"], name="wide", hidden_size=128, intermediate_size=256, tied=True)
CASES = {**tiny.CASES, "wide": WIDE}
"""One more with whole groups of 128 inputs."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a case, written once."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            path = tmp_path_factory.mktemp("checkpoint") / name
            written[name] = tiny.write_checkpoint(path, CASES[name])
        return written[name]

    return folder


@pytest.fixture(scope="session")
def export(checkpoint, tmp_path_factory):
    """Export a case with these settings."""

    def make(name: str, **settings) -> Path:
        output = tmp_path_factory.mktemp("export") / name
        run = RunConfig(model=str(checkpoint(name)), backend="static", **settings)
        export_model(run, output, NoProgress())
        return output

    return make


@pytest.fixture(scope="session")
def exported(export):
    """Not to be changed."""
    return export("gqa", quant="wint8", max_model_len=96)
