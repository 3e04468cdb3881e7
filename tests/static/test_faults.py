"""Whatever is wrong with an exported folder, or with what is asked of it, is said."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from qinfer.core.errors import BadCheckpoint, Unsupported, UsageError
from static.tools import answer

FILES = ("config.json", "generation_config.json", "parameters.safetensors", "program.json")
FILES += ("qinfer.json", "tokenizer.json")


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to be spoilt."""
    return shutil.copytree(exported, tmp_path / "copy")


def refuse(folder, kind, match, **options):
    with pytest.raises(kind, match=match) as caught:
        answer(folder, **options)
    assert caught.value.remedy
    return caught.value


def edit(folder: Path, change, *, seal: bool = True) -> None:
    """Change the manifest, and its checksum with it."""
    path = folder / "qinfer.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest() if seal else "0" * 64
    path.write_text(json.dumps({**manifest, "sha256": digest}))


def test_files_are_all_there_are(exported):
    """Of those that are spoilt below."""
    assert {path.name for path in exported.iterdir()} >= set(FILES)
    assert set(json.loads((exported / "qinfer.json").read_text())["files"]) | {"qinfer.json"} == {
        path.name for path in exported.iterdir()
    }


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 1], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(folder, name, place):
    data = bytearray((folder / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    (folder / name).write_bytes(data)
    assert refuse(folder, BadCheckpoint, name.partition(".")[0]).exit_code == 5


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(folder, name):
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size - 2)
    refuse(folder, BadCheckpoint, name.partition(".")[0])
    os.truncate(folder / name, 0)
    refuse(folder, BadCheckpoint, name.partition(".")[0])


@pytest.mark.parametrize("name", FILES[2:4])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refuse(folder, BadCheckpoint, f"{name} is missing")


def test_a_manifest_changed_by_hand_is_refused(folder):
    edit(folder, lambda manifest: manifest["config"].update(eos_token_ids=[1]), seal=False)
    refuse(folder, BadCheckpoint, "checksum")


def lack(manifest):
    del manifest["config"]["vocab_size"]


EDITS = {
    "format": (lambda m: m.update(format=2), Unsupported, "format 2"),
    "paddle": (lambda m: m.update(paddle="2.6.1"), Unsupported, "Paddle 2.6.1"),
    "sources": (lambda m: m["needs"]["facts"].update(sources="x"), Unsupported, "sources x"),
    "order": (
        lambda m: m["needs"]["facts"].update({"order of int8": "x"}),
        Unsupported,
        r"another kind of processor.*\(order of int8\)",
    ),
    "unknown": (lambda m: m["cache"].update(colour="red"), BadCheckpoint, "cache has the unknown"),
    "missing": (lack, BadCheckpoint, "config.vocab_size is missing"),
    "text": (lambda m: m["cache"].update(head_dim="16"), BadCheckpoint, "cache.head_dim"),
    "bool": (lambda m: m["config"].update(num_layers=True), BadCheckpoint, "num_layers"),
    "zero": (lambda m: m["cache"].update(block_size=0), BadCheckpoint, "at least 1"),
    "infinity": (lambda m: m["config"].update(rope_theta=1e999), BadCheckpoint, "rope_theta"),
    "outside": (
        lambda m: m["files"].update({"../x": {"size": 1, "sha256": ""}}),
        BadCheckpoint,
        "not in the folder",
    ),
    "device": (
        lambda m: m.update(device="gpu"),
        Unsupported,
        "exported for a gpu: .* no NVIDIA card",
    ),
    "backend": (lambda m: m["backend"].update(name="mystery"), UsageError, "mystery"),
}


@pytest.mark.parametrize("case", EDITS)
def test_a_manifest_that_says_what_it_cannot_is_refused(folder, case):
    change, kind, match = EDITS[case]
    edit(folder, change)
    refuse(folder, kind, match)


@pytest.mark.parametrize(
    "option",
    [
        {"plugin": "qwen3"},
        {"quant": "fp8"},
        {"backend": "dynamic"},
        {"dtype": "float16"},
        {"kv_cache_dtype": "int8"},
        {"device": "gpu"},
        {"max_model_len": 97},
    ],
    ids=str,
)
def test_an_option_that_contradicts_is_refused(exported, option):
    (name,) = option
    said = {"max_model_len": "a context of 97 tokens"}.get(name, f"--{name.replace('_', '-')} ")
    refuse(exported, UsageError, said, **option)


def test_random_weights_are_refused(exported):
    refuse(exported, UsageError, "random_weights contradicts", random_weights=True)


def test_options_that_agree_are_not(exported):
    said = {"plugin": "qwen2", "quant": "weight_only_int8", "backend": "static", "device": "cpu"}
    assert answer(exported, **said, dtype="float32", max_model_len=50) == answer(exported)


NO_COMPILER = {"CXX": "/nowhere/c++", "PATH": "/nowhere"}


def test_without_a_compiler(export, exported, monkeypatch, tmp_path):
    """Native operators are missed; the reference's program needs none."""
    expected = answer(exported)
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    refuse(exported, Unsupported, "needs cpu operators.*reference .QINFER_OPERATORS says so")
    plain = export("gqa", quant="wint8")
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path / "cache"))
    for name, value in NO_COMPILER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("QINFER_OPERATORS")
    refuse(exported, Unsupported, "needs cpu operators")
    assert answer(plain) == expected
    refuse(plain, Unsupported, "reference operators", require_kernels=True)
