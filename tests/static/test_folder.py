"""An exported folder is all it takes: moved, without its checkpoint, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from goldens import tiny
from qinfer import LLM
from qinfer.core.cli import main
from qinfer.core.errors import QinferError, UsageError
from qinfer.core.export import make
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.types import RunConfig
from static.tools import CACHE, GREEDY, answer


def qinfer(*arguments, **environment):
    """A process of its own, away from the repository; code, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "qinfer", *map(str, arguments)],
        env={**os.environ, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_moved_folder_runs_in_a_new_process_without_its_checkpoint(tmp_path):
    original = tiny.write_checkpoint(tmp_path / "original", tiny.CASES["gqa"])
    said = ("--temperature", "0", "--max-tokens", "8", "--ignore-eos", "--kv-cache-memory", "4MiB")
    dynamic = qinfer("run", "--model", original, "--quant", "fp8", *said, "Hello")
    output = tmp_path / "made" / "here"
    assert qinfer("export", "--model", original, "--quant", "fp8", "--output", output)[0] == 0
    shutil.rmtree(original)
    moved = shutil.move(output, tmp_path / "elsewhere")
    for path in (moved, *moved.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(moved.parent.rglob("*"))]
    static = qinfer("run", "--model", moved, *said, "Hello")
    # Whoever runs the tests as root may write all the same.
    assert before == [(path, path.stat().st_mtime_ns) for path in sorted(moved.parent.rglob("*"))]
    moved.chmod(0o755)
    assert (static[0], dynamic[0]) == (0, 0), static[2]
    assert static[1] == dynamic[1] != ""


def test_no_plugin_of_model_or_scheme_is_loaded(exported, monkeypatch):
    loaded = []
    import qinfer.core.registry.selection as selection

    load = selection.load_plugin
    monkeypatch.setattr(
        selection, "load_plugin", lambda record: loaded.append(record.kind) or load(record)
    )
    assert len(answer(exported)) == 8
    assert loaded == ["backend"]


def test_the_cache_is_exported_into_once(checkpoint, monkeypatch, tmp_path, capsys):
    operators = Path(os.environ.get("QINFER_CACHE", Path.home() / ".cache" / "qinfer"))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "operators").symlink_to(operators / "operators")
    monkeypatch.setenv("QINFER_CACHE", str(cache))
    options = {"quant": "wint8", "backend": "static", "progress": True}
    expected = answer(checkpoint("gqa"), quant="wint8")
    for exports in (1, 0):
        assert answer(checkpoint("gqa"), **options) == expected
        assert capsys.readouterr().err.count("Exporting") == exports
    (made,) = (path for path in (cache / "exports").iterdir() if path.is_dir())
    data = bytearray((made / "parameters.safetensors").read_bytes())
    data[-1] ^= 1
    (made / "parameters.safetensors").write_bytes(data)
    assert answer(checkpoint("gqa"), **options) == expected
    assert capsys.readouterr().err.count("Exporting") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(checkpoint, monkeypatch, tmp_path, error):
    def interrupted(folder, manifest):
        (folder / "half").write_text("")
        raise error

    monkeypatch.setattr(make, "write_manifest", interrupted)
    run = RunConfig(model=str(checkpoint("gqa")), backend="static")
    with pytest.raises((KeyboardInterrupt, QinferError)):
        make.export_model(run, tmp_path / "output", NoProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_no_output_and_the_next_one_cleans_up(checkpoint, tmp_path):
    output = tmp_path / "output"
    command = ["export", "--model", str(checkpoint("gqa")), "--output", str(output)]
    process = subprocess.Popen([sys.executable, "-m", "qinfer", *command], cwd="/")
    while not list(tmp_path.glob("output.tmp-*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    run = RunConfig(model=str(checkpoint("gqa")), backend="static")
    make.export_model(run, output, NoProgress())
    assert list(tmp_path.iterdir()) == [output]


def test_a_folder_that_cannot_be_written_is_named(checkpoint):
    """In a file system that lets nobody make one."""
    output = Path("/sys/qinfer-export")
    with pytest.raises(QinferError, match=f"{output} cannot be written: ") as caught:
        make.export_model(
            RunConfig(model=str(checkpoint("gqa")), backend="static"), output, NoProgress()
        )
    assert "another disk" in caught.value.remedy


def test_what_cannot_be_exported(exported, checkpoint, tmp_path):
    for run, output, match in (
        (RunConfig(model=str(exported), backend="static"), tmp_path / "new", "exported folder"),
        (RunConfig(model=str(checkpoint("gqa"))), tmp_path / "new", "exports nothing"),
        (RunConfig(model=str(checkpoint("gqa")), backend="static"), tmp_path, "exists"),
    ):
        with pytest.raises(QinferError, match=match):
            make.export_model(run, output, NoProgress())
    settings = QuantizeSettings(model=str(exported), quant="wint8")
    with pytest.raises(UsageError, match="exported folder"):
        quantize(settings, tmp_path / "new", NoProgress())


@pytest.mark.parametrize("has_template", [True, False])
def test_chat_prompts_are_the_plugin_s(checkpoint, tmp_path, has_template):
    original = shutil.copytree(checkpoint("gqa"), tmp_path / "original")
    template = original / "chat_template.jinja"
    template.write_text("{{ messages[0]['content'] }}!")
    if not has_template:
        template.unlink()
        config = json.loads((original / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (original / "tokenizer_config.json").write_text(json.dumps(config))
    run = RunConfig(model=str(original), backend="static")
    make.export_model(run, tmp_path / "made", NoProgress())
    conversation = [{"role": "user", "content": "Who's \\n {{ there }}?"}]
    with LLM(str(original), **CACHE) as dynamic, LLM(str(tmp_path / "made"), **CACHE) as static:
        assert static.chat_text(conversation) == dynamic.chat_text(conversation)


def test_info_shows_the_manifest(exported, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["info", str(exported)])
    shown = capsys.readouterr().out
    for word in ("qwen2", "wint8", "float32", "96 tokens", "cpu"):
        assert word in shown
    with pytest.raises(SystemExit, match="0"):
        main(["info", str(exported), "--json"])
    assert json.loads(capsys.readouterr().out)["format"] == 1


def test_info_refuses_what_the_folder_was_not_made_with(exported, capsys):
    said = ("--plugin", "qwen2", "--quant", "wint8")
    with pytest.raises(SystemExit, match="0"):
        main(["info", str(exported), *said])
    for option, name in (("--plugin", "qwen3"), ("--quant", "fp8")):
        with pytest.raises(SystemExit, match="2"):
            main(["info", str(exported), option, name])
        assert f"{option} {name} contradicts" in capsys.readouterr().err


def test_plain_inference(exported, tmp_path):
    """The example, without qinfer's Python code, gives the same tokens."""
    code, library, _ = qinfer("build-ops")
    assert code == 0
    with LLM(str(exported), **CACHE) as llm:
        output = llm.generate("Hello", GREEDY)[0]
    example = Path(__file__).resolve().parents[2] / "examples" / "plain_inference.py"
    assert len(example.read_text().splitlines()) < 60
    words = [example, exported, library.strip(), *output.prompt_token_ids]
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    tokens = [int(word) for word in done.stdout.split()]
    assert tokens[:8] == list(output.completions[0].token_ids)
