"""``qinfer info`` over tiny configurations: no weights are read, nor are there any."""

import json
import os
import subprocess
import sys

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub import errors

from goldens import tiny
from qinfer.core.cli.info import command
from qinfer.core.errors import BadCheckpoint, PluginNotFound


def info(*arguments):
    done = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.CASES["moe_dense"].config))
    return str(tmp_path)


def test_the_text_says_what_the_model_is(folder):
    shown = info(folder, "--quant", "wint8", "--quant", "none")
    assert f"model       {folder}, read by qwen2_moe\n" in shown
    assert "mlp         2 of 6 experts of 48 and a shared one of 64; 1 layers have a plain" in shown
    assert "attention   4 heads of 16, 4 for keys and values\n" in shown
    assert "context     512 tokens\n" in shown
    rows = shown.split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in rows] == ["scheme", "wint8", "none"]


def test_windows_and_scaling_are_shown(tmp_path):
    for name, words in (("window", "2 layers see the last 9 tokens"), ("yarn", "(yarn scaling)")):
        (tmp_path / "config.json").write_text(json.dumps(tiny.CASES[name].config))
        assert words in info(str(tmp_path), "--quant", "none")


def test_json(folder):
    record = json.loads(info(folder, "--json", "--quant", "wint8"))
    case = tiny.CASES["moe_dense"]
    held = sum(tensor.size for tensor in tiny.weights(case).values())
    assert record["parameters"] == held
    idle = 4 * (3 * 48 * 64) * 2  # experts not chosen, in the two layers that have them
    assert record["active_parameters"] == held - idle
    assert record["config"]["experts"]["layers"] == [0, 2]
    assert list(record["schemes"]) == ["wint8"]
    linears = [t for n, t in tiny.weights(case).items() if "_proj.weight" in n]
    rows, weights = sum(len(t) for t in linears), sum(t.size for t in linears)
    expected = weights + 4 * rows + 2 * (held - weights)  # int8, a scale a row, the rest bfloat16
    assert record["schemes"]["wint8"]["parameter_bytes"] == expected
    assert record["schemes"]["wint8"]["cache_bytes_per_token"] == 2 * 2 * 3 * 4 * 16


def test_all_installed_schemes_without_a_choice(folder):
    assert {"none", "wint8", "wint4", "fp8"} <= set(json.loads(info(folder, "--json"))["schemes"])


def test_errors(folder, tmp_path):
    with pytest.raises(PluginNotFound, match='no quant plugin is called "nine"'):
        info(folder, "--quant", "nine")
    with pytest.raises(BadCheckpoint, match=r"there is no config\.json"):
        info(str(tmp_path.parent))
    with pytest.raises(BadCheckpoint, match="there is no folder"):
        info("./nowhere")


def test_only_the_config_is_downloaded(folder, monkeypatch):
    calls = []

    def hf_hub_download(repo, file, *, revision):
        calls.append((repo, file, revision))
        if len(calls) > 1:
            raise errors.LocalEntryNotFoundError("no connection")
        return f"{folder}/config.json"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    assert "model       org/name@v1, read by" in info("org/name@v1", "--quant", "none")
    assert calls == [("org/name", "config.json", "v1")]
    with pytest.raises(BadCheckpoint, match="the hub cannot be reached"):
        info("org/name")


def test_as_a_process_it_prints_nothing_else(folder):
    done = subprocess.run(
        [sys.executable, "-m", "qinfer", "info", folder, "--json"],
        capture_output=True,
        env={name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"},
        check=True,
    )
    json.loads(done.stdout)
    assert done.stderr == b""
