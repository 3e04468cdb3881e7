"""``qinfer quantize`` from end to end on a tiny model: written, read back, killed, continued."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from goldens import tiny
from goldens.steps import step_logits
from qinfer.core.cli.quantize import command
from qinfer.core.errors import QinferError
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops import table

CASE = tiny.CASES["gqa"]
TOKENS = tiny.prompt(CASE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("q") / "m", CASE, shards=2)


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    table.use(table.REFERENCE)


def settings_of(folder, **changes):
    chosen = {"quant": "a8w8", "tokens": 600, "window": 60, "group_size": 32, **changes}
    return QuantizeSettings(model=str(folder), **chosen)


def made(folder, output, **changes):
    quantize(settings_of(folder, **changes), output, NoProgress())
    return output


def logits_of(folder, quant="auto"):
    run = RunConfig(model=str(folder), quant=quant, dtype="float32")
    opened = load_model(run, select(run), folder, NoProgress())
    return step_logits(opened, TOKENS, [len(TOKENS)]), opened.stats


LIMITS = {"wint8": 0.1, "wint4": 1.2, "a8w8": 0.6, "fp8": 0.6}
"""Largest deviation of the logits from the plain model's, which have deviation 3. The prompt is
random tokens, unlike the texts of calibration: static scales clip some of it.
"""


@pytest.mark.parametrize("activations", ["token", "tensor"])
@pytest.mark.parametrize("quant", ["wint8", "wint4", "a8w8", "fp8"])
def test_what_is_written_is_read_and_near_the_model(folder, tmp_path, quant, activations):
    if quant in ("wint8", "wint4"):
        if activations == "tensor":
            pytest.skip("no activations are quantised")
        activations = ""
    output = made(folder, tmp_path / "out", quant=quant, activations=activations)
    got, stats = logits_of(output)
    exact, _ = logits_of(folder)
    assert 1e-4 < np.std(got - exact) < LIMITS[quant]
    assert stats.layers_by_scheme == {quant: 12, "none": 1}
    report = json.loads((output / "quantize-report.json").read_text(encoding="utf-8"))
    assert len(report["linears"]) == 12
    assert report["skipped"] == {"lm_head": "the vocabulary head keeps the model's precision"}
    assert (output / "tokenizer.json").exists()
    assert not output.with_name("out.partial").exists()


@pytest.mark.parametrize(("quant", "method"), [("a8w8", "smoothquant"), ("fp8", "absmax")])
def test_paddlenlps_format(folder, tmp_path, quant, method):
    output = made(folder, tmp_path / "out", quant=quant, method=method, format="paddlenlp")
    got, stats = logits_of(output, quant)
    exact, _ = logits_of(folder)
    assert np.std(got - exact) < LIMITS[quant]
    assert stats.layers_by_scheme == {quant: 12, "none": 1}
    scales = json.loads((output / "weight_scales.json").read_text(encoding="utf-8"))
    assert all(name.startswith("qwen2.layers.") for name in scales)


def test_both_formats_hold_the_same_numbers(folder, tmp_path):
    """Bit for bit: one scale for each activation tensor, and nothing that only one can hold."""
    common = {"quant": "a8w8", "method": "mse", "activations": "tensor"}
    one, other = (
        logits_of(made(folder, tmp_path / form, format=form, **common))[0]
        for form in ("compressed-tensors", "paddlenlp")
    )
    np.testing.assert_array_equal(one, other)


def test_smoothing_goes_into_norms_and_the_gated_linear(folder, tmp_path):
    """What is folded away leaves the model as it was, up to rounding to int8."""
    from qinfer.core.checkpoint.files import Checkpoint

    uneven = tmp_path / "uneven"  # one input of many linears is far larger than the others
    shutil.copytree(folder, uneven)
    for path in uneven.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            tensor[5] *= 50 if name.endswith("layernorm.weight") else 1
        save_file(tensors, path)
    plain, smooth = (
        Checkpoint(made(uneven, tmp_path / method, method=method))
        for method in ("absmax", "smoothquant")
    )
    moved = [
        not np.array_equal(plain.read(name), smooth.read(name))
        for name in plain.names()
        if name.endswith("layernorm.weight")
    ]
    assert len(moved) == 6
    assert all(moved)
    name = "model.layers.0.mlp.up_proj.weight"
    norm = "model.layers.0.post_attention_layernorm.weight"
    held = {
        key: c.read(name) * c.read(f"{name}_scale") * c.read(norm).astype(np.float32)
        for key, c in (("plain", plain), ("smooth", smooth))
    }
    ratio = (held["smooth"] * held["plain"]).sum(axis=1) / (held["plain"] ** 2).sum(axis=1)
    back = held["smooth"] / ratio[:, None]
    np.testing.assert_allclose(back, held["plain"], atol=0.03 * np.abs(held["plain"]).max())


def files_of(folder):
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != "quantize-report.json"
    }


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


@pytest.mark.reference
def test_transformers_reads_what_is_written(folder, tmp_path):
    """Where torch, transformers and compressed-tensors are installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    output = made(folder, tmp_path / "out", quant="wint8")
    model = transformers.AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(output)[0], theirs, atol=2e-3)
