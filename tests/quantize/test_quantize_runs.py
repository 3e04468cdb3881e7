"""Runs of ``qinfer quantize`` on a tiny model: killed, continued, refused, without room."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from qinfer.core.cli.quantize import command
from qinfer.core.errors import QinferError
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.quantize import quantize
from quantize.tools import files_of, logits_of, made, settings_of

pytestmark = pytest.mark.usefixtures("reference")


def test_killed_and_continued_gives_the_same_bytes(folder, tmp_path):
    expected = files_of(made(folder, tmp_path / "whole", method="smoothquant+gptq"))
    output = tmp_path / "killed"
    code = (
        "import sys, time, pathlib\n"
        "from qinfer.core.progress import NoProgress\n"
        "from qinfer.core.quantize import calibrate, quantize as q\n"
        "from qinfer.core.quantize.settings import QuantizeSettings\n"
        "plain = calibrate.quantise_linear\n"
        "def slow(*a, **k):\n    time.sleep(0.2)\n    return plain(*a, **k)\n"
        "calibrate.quantise_linear = slow\n"
        "s = QuantizeSettings(model=sys.argv[1], quant='a8w8', tokens=600, window=60, "
        "group_size=32, method='smoothquant+gptq')\n"
        "q.quantize(s, pathlib.Path(sys.argv[2]), NoProgress())\n"
    )
    # Paddle leaves a number of threads there, and numpy's products depend on it in the last bit.
    alone = {name: said for name, said in os.environ.items() if name != "OMP_NUM_THREADS"}
    command_line = [sys.executable, "-c", code, str(folder), str(output)]
    child = subprocess.Popen(command_line, cwd="/", env=alone)
    first = tmp_path / "killed.partial" / "layer-00000.safetensors"
    for _ in range(600):
        if first.exists() or child.poll() is not None:
            break
        time.sleep(0.05)
    assert child.poll() is None, "it ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not output.exists()
    before = first.stat().st_mtime_ns
    with pytest.raises(QinferError, match="begun with other settings"):
        made(folder, output, method="absmax")
    kept = {}

    class Watch(NoProgress):
        def note(self, text):
            kept["time"], kept["text"] = first.stat().st_mtime_ns, text

    quantize(settings_of(folder, method="smoothquant+gptq"), output, Watch())
    assert kept["text"].startswith("Continuing")
    assert kept["time"] == before
    assert files_of(output) == expected


def call(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)


def test_the_command_sums_up(folder, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "errors.svg"
    done = call("--model", folder, "--quant", "wint4", "--output", tmp_path / "o", "--plot", plot,
                "--calib-tokens", "200")  # fmt: skip
    assert done.exception is None
    # 160 inputs make no groups of 64.
    assert "not quantised: layers.0.down, layers.1.down, layers.2.down, lm_head" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["qkv", "o", "gate_up"]
    assert plot.exists()
    assert logits_of(tmp_path / "o")[1].layers_by_scheme == {"wint4": 9, "none": 4}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quant", "wint9"], "unknown --quant"),
        (["--method", "magic"], "is none"),
        (["--method", "awq+smoothquant"], "exclude each other"),
        (["--quant", "wint8", "--method", "smoothquant"], "rounds none"),
        (["--quant", "wint4", "--format", "paddlenlp"], "PaddleNLP's format holds"),
        (["--quant", "wint4", "--activations", "tensor"], "no activation scales"),
        (["--method", "mse+percentile"], "exclude each other"),
        (["--zero-points"], "a8w8 has no zero points"),
        (["--quant", "wint4-zp", "--group-size", "32"], "wint4-zp says already"),
        (["--group-size", "-2"], "--group-size -2"),
        (["--skip", "layers.*"], "no linear of .* would be quantised: --skip"),
        (["--quant", "wint4-g128"], "would be quantised: 64 inputs are no multiple of 128"),
        (["--quant", "wint4", "--group-size", "37"], "would be quantised: 64 inputs are no multip"),
        (["--model", "/nowhere/at/all"], "no folder"),
        (["--calib", "EMPTY"], "has no text"),
    ],
)
def test_bad_calls_are_refused_before_anything_is_written(folder, tmp_path, arguments, words):
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    given = [str(empty) if word == "EMPTY" else word for word in arguments]
    model = [] if "--model" in given else ["--model", folder]
    done = call(*model, *given, "--output", tmp_path / "out")
    assert isinstance(done.exception, QinferError)
    assert re.search(words, str(done.exception))
    assert done.exception.remedy
    assert list(tmp_path.iterdir()) == [empty]


def test_an_existing_output_and_a_quantised_source_are_refused(folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(QinferError, match="exists already"):
        made(folder, tmp_path / "there")
    output = made(folder, tmp_path / "once", method="absmax")
    with pytest.raises(QinferError, match="quantised already"):
        made(output, tmp_path / "twice")


@pytest.mark.parametrize("limit", [20_000, 100_000], ids=["first layer", "all the rest"])
def test_a_full_disk_is_said_and_what_is_done_stays(folder, tmp_path, limit):
    """A file may not grow beyond a limit, which is said in the way that a full disk is."""
    resource = pytest.importorskip("resource")
    output = tmp_path / "out"
    call = "import sys; from qinfer.core.cli import main; main(sys.argv[1:])"
    options = {"--model": folder, "--quant": "a8w8", "--method": "absmax", "--output": output}
    options |= {"--calib-tokens": 600, "--window": 60, "--group-size": 32}
    arguments = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-c", call, "quantize", *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "out cannot be written" in done.stderr
    assert "File too large" in done.stderr
    assert "Free disk space" in done.stderr
    assert not output.exists()
    assert (tmp_path / "out.partial").exists()
    again = files_of(made(folder, output, method="absmax"))
    assert again == files_of(made(folder, tmp_path / "whole", method="absmax"))


def test_rows_longer_than_a_window_are_cut(folder, tmp_path):
    """One row of 40,000 tokens, of which no more than asked for are used."""
    calib = tmp_path / "long.jsonl"
    calib.write_text(json.dumps({"text": "ring the bell twice " * 20_000}) + "\n", encoding="utf-8")
    settings = settings_of(folder, calib=calib, method="absmax", tokens=300, window=64)
    report = quantize(settings, tmp_path / "out", NoProgress())
    assert report["tokens"] == 300
