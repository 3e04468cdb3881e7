"""``qinfer bench`` over a tiny model: real processes, no judgement of the speeds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from goldens import tiny
from qinfer.core.cli.bench import command
from qinfer.core.errors import QinferError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.write_checkpoint(tmp_path_factory.mktemp("b") / "m", tiny.CASES["gqa"]))


def bench(*arguments):
    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


SMALL = ("--prompt-tokens", "40", "--output-tokens", "5", "--repeat", "2")


def test_records_name_what_and_unit(folder):
    done = bench("--model", folder, "--quant", "none", "--quant", "wint8", "--batch-size", "1",
                 "--batch-size", "3", "--json", *SMALL)  # fmt: skip
    assert done.exception is None
    records = json.loads(done.stdout)
    assert [(r["quant"], r["batch_size"]) for r in records] == [
        ("none", 1), ("none", 3), ("wint8", 1), ("wint8", 3),
    ]  # fmt: skip
    for record in records:
        assert record["prefill_tokens_per_s"] > 0
        assert record["decode_tokens_per_s"] > 0
        assert 0 < record["first_token_seconds_p50"] <= record["first_token_seconds_p99"]
        steps = [record[f"decode_step_seconds_p{p}"] for p in (50, 90, 99)]
        assert steps == sorted(steps)
        assert record["peak_memory_bytes"] > record["parameter_bytes"] > 0
        # All runs were measured: more seconds than tokens at that speed would need.
        assert record["decode_tokens_per_s"] * steps[0] <= record["batch_size"] * 1.5
    assert records[2]["parameter_bytes"] < records[0]["parameter_bytes"]


def test_the_table_has_a_row_for_each(folder):
    done = bench("--model", folder, *SMALL)
    assert done.exception is None
    heading, row = done.stdout.splitlines()
    assert heading.startswith("quant")
    assert row.split()[:3] == ["none", "40", "1"]


def test_a_config_with_random_weights(folder, tmp_path):
    """Through the real loading, in the bytes of its shapes."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny.CASES["moe"].config | {"torch_dtype": "bfloat16"}))
    done = bench("--config", str(config), "--quant", "wint8", "--prompt-tokens", "20",
                 "--prompt-tokens", "9", "--requests", "5", "--batch-size", "2", "--json",
                 "--output-tokens", "4", "--repeat", "1", "--device", "cpu")  # fmt: skip
    assert done.exception is None
    records = json.loads(done.stdout)
    assert [(r["prompt_tokens"], r["batch_size"], r["requests"]) for r in records] == [
        (20, 2, 5), (9, 2, 5),
    ]  # fmt: skip
    for record in records:
        assert record["model"] == str(config)
        assert record["decode_tokens_per_s"] is None
        assert record["output_tokens_per_s"] > 0
        assert record["floor_seconds"] * record["read_bytes_per_s"] > record["parameter_bytes"] / 4


def test_one_output_token_has_no_decode_speed(folder):
    done = bench("--model", folder, "--prompt-tokens", "8", "--output-tokens", "1", "--json")
    assert json.loads(done.stdout)[0]["decode_tokens_per_s"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--quant", "wint9"], 2, "no quant plugin"),
        (["--prompt-tokens", "600"], 2, "do not fit"),
        (["--model", "/nowhere/at/all"], 5, "no folder"),
        (["--model", "x", "--config", "qwen2-7b"], 2, "exclude each other"),
        (["--config", "qwen9"], 2, "no published configuration"),
        (["--config", "/"], 5, "no config.json in /"),
    ],
)
def test_errors_of_the_measuring_process_keep_their_code(folder, arguments, code, words):
    named = {"--model", "--config"} & set(arguments)
    given = arguments if named else ["--model", folder, *arguments]
    done = bench(*given)
    assert isinstance(done.exception, QinferError)
    assert done.exception.exit_code == code
    assert words in str(done.exception)


@pytest.mark.parametrize("option", ["--batch-size", "--requests"])
def test_more_requests_than_there_is_memory_for_their_prompts_are_refused(folder, option):
    done = bench("--model", folder, option, "100000000")
    assert isinstance(done.exception, click.BadParameter)
    assert "65536" in str(done.exception)


def test_a_misspelt_scheme_costs_no_measurement(folder):
    done = bench("--model", folder, "--quant", "none", "--quant", "wint9")
    assert "no quant plugin" in str(done.exception)
    assert "Measuring" not in done.stderr


def test_ctrl_c_is_not_for_the_measuring_process(folder):
    """Which would print a traceback, while the one that started it ends it."""
    command = [sys.executable, "-m", "qinfer", "bench", "--model", folder, *SMALL]
    pipe = subprocess.PIPE
    running = subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd="/")
    assert running.stderr.readline() == b"Measuring auto\n"
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not (child := children.read_text().strip()):
        time.sleep(0.01)
    # Until then it is a copy of the one that starts it, in the midst of starting.
    while b"measure.bench" not in Path(f"/proc/{child}/cmdline").read_bytes():
        time.sleep(0.01)
    os.kill(int(child), signal.SIGINT)
    assert running.communicate(timeout=60)[1] == b""
    assert running.returncode == 0


def test_kernels_that_are_required_and_cannot_be_built(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # where no compiler is
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path / "cache"))
    done = bench("--model", folder, "--require-kernels")
    assert isinstance(done.exception, QinferError)
    assert done.exception.exit_code == 4
    assert "C++ compiler" in str(done.exception)


def test_a_plot_is_drawn(folder, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "speed.png"
    assert bench("--model", folder, "--plot", str(path), *SMALL).exception is None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_operators_are_not_timed_on_a_processor(folder):
    done = bench("--model", folder, "--kernels", *SMALL)
    assert isinstance(done.exception, QinferError)
    assert done.exception.exit_code == 2
    assert "on a GPU only" in str(done.exception)
