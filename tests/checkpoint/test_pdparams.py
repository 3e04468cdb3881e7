"""Paddle's pickle files: what ``paddle.save`` writes is read, and nothing in a file is ever run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct

import ml_dtypes
import numpy as np
import paddle
import pytest
from click.testing import CliRunner

from goldens import tiny
from goldens.steps import step_logits
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.pdparams_file import read_pdparams
from qinfer.core.checkpoint.pickle_steps import MOST_TEXT
from qinfer.core.checkpoint.safetensors_file import map_tensor
from qinfer.core.cli.convert import command
from qinfer.core.errors import BadCheckpoint, QinferError
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig


def convert(source, output):
    arguments = ["--model", str(source), "--output", str(output)]
    return CliRunner().invoke(command, arguments, standalone_mode=False)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("kind", ["tensors", "arrays", "ordered", "state_dict"])
def test_what_paddle_saves(tmp_path, rng, kind, protocol):
    arrays = {
        "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(4,)).astype(np.float16),
        "c": rng.integers(-128, 128, (2, 3, 2)).astype(np.int8),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(3.5, np.float32),
    }
    saved = {name: paddle.to_tensor(array) for name, array in arrays.items()}
    if kind == "arrays":
        saved = arrays
    elif kind == "ordered":
        saved = collections.OrderedDict(arrays)
    elif kind == "state_dict":
        linear = paddle.nn.Linear(3, 5)
        saved = linear.state_dict()
        arrays = {name: tensor.numpy() for name, tensor in saved.items()}
    paddle.save(saved, str(tmp_path / "m.pdparams"), protocol=protocol)
    found = read_pdparams(tmp_path / "m.pdparams")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        got = map_tensor(found[name])
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_bfloat16(tmp_path):
    exact = np.arange(-3, 3, dtype=np.float32) / 4
    paddle.save({"x": paddle.to_tensor(exact).astype("bfloat16")}, str(tmp_path / "m.pdparams"))
    got = map_tensor(read_pdparams(tmp_path / "m.pdparams")["x"])
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(got.astype(np.float32), exact)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_converted_checkpoint_has_the_same_logits(tmp_path, shards):
    case = tiny.CASES["gqa"]
    plain = tiny.write_checkpoint(tmp_path / "plain", case, layout="paddle")
    held = Checkpoint(plain)
    names = held.names()
    source = tmp_path / "source"
    source.mkdir()
    for number in range(shards):
        part = {name: np.array(held.read(name)) for name in names[number::shards]}
        file = "model_state" if shards == 1 else f"model_state-{number + 1:05d}-of-00002"
        paddle.save(part, str(source / f"{file}.pdparams"))
    for path in plain.glob("*.json"):
        if "safetensors" not in path.name:
            (source / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadCheckpoint, match="qinfer convert"):
        Checkpoint(source)
    assert convert(source, tmp_path / "out").exception is None
    prompt = tiny.prompt(case)
    logits = []
    for folder in (plain, tmp_path / "out"):
        run = RunConfig(model=str(folder), dtype="float32")
        opened = load_model(run, select(run), folder, NoProgress())
        logits.append(step_logits(opened, prompt, [len(prompt)]))
    np.testing.assert_array_equal(*logits)
    done = convert(source, tmp_path / "out")
    assert "exists already" in str(done.exception)


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FLAG = "was_run"


def dumped(value, protocol=4):
    return pickle.dumps(value, protocol)


def text(content):
    return b"\x8c" + bytes([len(content)]) + content.encode()


def named(module, name):
    return text(module) + text(name) + b"\x93"


ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
MALICIOUS = {
    "os.system": (dumped({"a": Runs(os.system, f"touch {FLAG}")}), "system"),
    "eval": (dumped({"a": Runs(eval, f"open('{FLAG}', 'w')")}), "builtins.eval"),
    "exec in a key": (dumped({Runs(exec, f"open('{FLAG}', 'w')"): 1}), "builtins.exec"),
    "before the dictionary": (dumped((Runs(os.mkdir, FLAG), {"a": ARRAY})), "mkdir"),
    "protocol 0": (dumped({"a": Runs(os.mkdir, FLAG)}, 0), "mkdir|no use for|operation"),
    "protocol 2": (dumped({"a": ARRAY}, 2), "_codecs.encode"),
    "numpy's own loader": (dumped({"a": Runs(np.load, FLAG)}), "numpy"),
    "fromfile": (dumped({"a": Runs(np.fromfile, "/etc/passwd")}), "numpy"),
    "getattr": (dumped({"a": Runs(getattr, ARRAY, "tofile")}), "builtins.getattr"),
    "an extension's code": (b"\x80\x04\x82\x01.", "EXT1"),
    "a persistent id": (b"\x80\x04P0\n.", "PERSID"),
    "a class": (dumped({"a": Exception("x")}), "builtins.Exception"),
    "an object's construction": (b"\x80\x04" + named("numpy", "ndarray") + b")\x81.", "NEWOBJ"),
    "a call of ndarray": (b"\x80\x04" + named("numpy", "ndarray") + b"K\x05\x85R.", "calls"),
    "a call of a text": (b"\x80\x04" + text("x") + b")R.", "calls"),
    "an array of objects": (dumped({"a": np.array([ARRAY, None], object)}), "objects|APPENDS"),
    "a record": (dumped({"a": np.zeros(2, [("x", "f4")])}), "records|kind|fit"),
    "columns first": (dumped({"a": np.asfortranarray(ARRAY)}), "columns first"),
    "big-endian": (dumped({"a": ARRAY.astype(">f4")}), "big-endian"),
    "numbers of no model": (dumped({"a": ARRAY.astype(np.complex64)}), "of the kind 'c8'"),
    "a list": (dumped([ARRAY]), "APPEND|something else"),
    "one array": (dumped(ARRAY), "something else"),
    "a text for an array": (dumped({"a": "x"}), "a is no array"),
    "a dtype for an array": (dumped({"a": np.dtype("f4")}), "a is no array"),
    "keys that are no names": (dumped({1: ARRAY}), "is no text"),
    "a key twice": (b"\x80\x04}" + 2 * (text("a") + b"Ns") + b".", "twice"),
    "a huge array": (
        b"\x80\x04}" + text("a") + b"\x8e" + struct.pack("<Q", 2**62) + b"s.",
        "beyond its end",
    ),
    "a huge text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".", "a text of it has"),
    "a long text": (
        b"\x80\x04X" + struct.pack("<I", 2 * MOST_TEXT) + b"x" * 2 * MOST_TEXT + b".",
        "a text of it has",
    ),
    "nothing on the stack": (b"\x80\x04s.", "does not fit"),
    "a mark that is not there": (b"\x80\x04t.", "does not fit"),
    "a value below a mark": (b"\x80\x04}(\x85.", "does not fit"),
    "memory that is not there": (b"\x80\x04h\x07.", "does not fit"),
    "memory out of order": (b"\x80\x04}q\xff.", "out of order"),
    "endless steps": (b"\x80\x04" + b"N" * 2_100_000 + b".", "steps"),
    "no pickle": (b"\xff\xfe hello", "no pickle"),
    "nothing": (b"", "no pickle"),
    "cut short": (dumped({"a": ARRAY})[:-20], "beyond its end|ends early|damaged|fit"),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_a_file_that_wants_more_is_refused(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    content, words = MALICIOUS[case]
    path = tmp_path / "m.pdparams"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        read_pdparams(path)
    assert "\n" not in caught.value.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pdparams"]


def test_the_flag_would_be_there(tmp_path, monkeypatch):
    """That the files above are dangerous: what an ordinary unpickler makes of the first two."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "eval"):
        pickle.load(io.BytesIO(MALICIOUS[name][0]))
        (tmp_path / FLAG).unlink()


def test_no_single_changed_byte_runs_anything(tmp_path, monkeypatch, rng):
    """Damaged at random: read, or refused in words."""
    path = tmp_path / "m.pdparams"
    whole = dumped({"weight": ARRAY, "bias": np.ones(3, np.float16)})
    monkeypatch.setattr(pickle, "Unpickler", None)
    for _ in range(2000):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            found = read_pdparams(path)
        except BadCheckpoint:
            continue
        for entry in found.values():
            assert entry.offset + entry.nbytes <= len(whole)


def test_several_ranks_and_no_files_are_refused(tmp_path):
    for rank in range(2):
        paddle.save({"a": paddle.ones([2])}, str(tmp_path / f"model_state.tp0{rank}.pdparams"))
    done = convert(tmp_path, tmp_path / "out")
    assert isinstance(done.exception, BadCheckpoint)
    assert "several ranks" in done.exception.remedy
    done = convert(tmp_path / "nowhere", tmp_path / "out")
    assert isinstance(done.exception, QinferError)
    assert "holds no .pdparams file" in done.exception.message
    assert not (tmp_path / "out").exists()
