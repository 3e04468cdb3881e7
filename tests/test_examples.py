"""The examples work: the plugin distribution as installed by pip, and the Python programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from goldens import tiny

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model"), tiny.CASES["gqa"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the example distribution installed."""
    root = tmp_path_factory.mktemp("example")
    source = shutil.copytree(
        EXAMPLES / "qinfer-plugin-example",
        root / "source",
        ignore=shutil.ignore_patterns("build", "*.egg-info"),
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target"]
    subprocess.run([*pip, str(root / "site"), str(source)], check=True)
    return root / "site"


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """Run python with these arguments, away from the repository."""

    def run(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, args)],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def test_example_plugins_keep_the_contract(python, site):
    done = python("-m", "qinfer", "list-plugins", "--check", "--json", PYTHONPATH=str(site))
    listed = [
        (row["kind"], row["name"], row["aliases"], row["check"]["ok"], row["check"]["problems"])
        for row in json.loads(done.stdout)["plugins"]
        if row["distribution"] == "qinfer-plugin-example"
    ]
    assert listed == [
        ("quant", "int8-blockwise", ["int8_block32"], True, []),
        ("observer", "speed", [], True, []),
    ]


def test_a_run_with_the_example_plugins(python, site, model):
    command = [
        "-m",
        "qinfer",
        "run",
        "--model",
        model,
        "--raw",
        "--max-tokens",
        "6",
        "--ignore-eos",
    ]
    command += ["--json", "--quant", "int8_block32", "--observer", "speed", "--stats", "the cat"]
    done = python(*command, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 6
    assert "(12 int8-blockwise, 1 none linears)" in done.stderr
    assert "speed: 6 tokens (" in done.stderr


def test_example_scheme_packs_within_half_a_step(site, monkeypatch, rng):
    monkeypatch.syspath_prepend(str(site))
    from qinfer_plugin_example.scheme import BLOCK, INT8, Int8Blockwise

    from qinfer.core.types import LinearSpec

    weight = rng.standard_normal((6, 3 * BLOCK)).astype("float32")
    weight[2, BLOCK : 2 * BLOCK] = 0
    spec = LinearSpec(name="x", role="o", in_features=3 * BLOCK, out_features=6)
    packed = Int8Blockwise().pack_weight(spec, INT8, weight)
    scale = packed["scale"].repeat(BLOCK, axis=0)
    assert packed["weight"].dtype == "int8"
    error = abs(packed["weight"].astype("float32") * scale - weight.T)
    assert (error <= scale * 0.5001).all()


def test_stream_example(python, model):
    done = python(EXAMPLES / "stream.py", "the cat", model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(" tokens]")


def test_batch_example(python, model):
    done = python(EXAMPLES / "batch.py", model)
    assert done.returncode == 0, done.stderr
    places = sorted(line.partition(":")[0] for line in done.stdout.splitlines())
    assert places == ["0", "1", "2", "3"]
    assert "2: refused: the prompt has " in done.stdout
