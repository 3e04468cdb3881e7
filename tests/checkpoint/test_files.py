import json
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint.tools import raw_file, save, tensors
from qinfer.core.checkpoint.files import INDEX, Checkpoint
from qinfer.core.errors import BadCheckpoint


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", tensors())


def complaint(folder):
    with pytest.raises(BadCheckpoint) as caught:
        Checkpoint(folder)
    assert caught.value.exit_code == 5
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int8"])
def test_reads_what_was_written(tmp_path, dtype):
    there = tensors(dtype)
    save(tmp_path / "model.safetensors", there)
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names()) == set(there)
    for name, array in there.items():
        read = checkpoint.read(name)
        assert read.dtype == array.dtype
        assert checkpoint.shape(name) == array.shape == read.shape
        assert checkpoint.nbytes(name) == array.nbytes
        assert not read.flags.writeable
        np.testing.assert_array_equal(read, array)


def test_scalars_and_empty_tensors(tmp_path):
    save(tmp_path / "model.safetensors", {"a": np.array(3.0), "b": np.ones((0, 4))})
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("a") == 3
    assert checkpoint.read("b").shape == (0, 4)


def test_float8_and_unknown_dtypes(tmp_path):
    header = {
        "eight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
        "four": {"dtype": "F4", "shape": [4], "data_offsets": [2, 4]},
    }
    raw_file(tmp_path / "model.safetensors", header, b"\x38\x40\x00\x00")
    checkpoint = Checkpoint(tmp_path)
    eight = checkpoint.read("eight")
    assert eight.dtype == ml_dtypes.float8_e4m3fn
    assert eight.astype(np.float32).tolist() == [1, 2]
    with pytest.raises(BadCheckpoint, match="tensor four has dtype F4"):
        checkpoint.read("four")


def test_dropping_a_tensor_unmaps_it(tmp_path):
    save(tmp_path / "model.safetensors", {"a": np.ones(2**22, np.float32)})

    def maps():
        with open("/proc/self/maps") as file:
            return sum(str(tmp_path) in line for line in file)

    array = Checkpoint(tmp_path).read("a")
    assert array.sum() == 2**22
    assert maps() == 1
    del array
    assert maps() == 0


def test_truncated_says_how_much_is_there(model):
    whole = model.read_bytes()
    model.write_bytes(whole[:-5])
    assert f"truncated: it has {len(whole) - 5:,} of {len(whole):,} bytes" in complaint(
        model.parent
    )
    model.write_bytes(whole[:40])
    assert "truncated: its header alone" in complaint(model.parent)


def test_flipped_bits_in_the_header(model):
    whole = bytearray(model.read_bytes())
    for place in range(8, 60):
        flipped = bytearray(whole)
        flipped[place] ^= 0x80
        model.write_bytes(flipped)
        assert "damaged" in complaint(model.parent)


def test_overlong_header(model):
    whole = model.read_bytes()
    for length in (2**62, 2**63 + 5, 10**9):
        model.write_bytes(length.to_bytes(8, "little") + whole[8:])
        assert "damaged or not a safetensors file" in complaint(model.parent)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"abc", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"PK\x03\x04" + b"\0" * 100, "PyTorch .bin"),
        (b"<!DOCTYPE html><p>503", "web page"),
        (b"GGUF" + b"\3\0\0\0" * 9, "GGUF"),
    ],
)
def test_impostors(tmp_path, content, words):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert words in complaint(tmp_path)


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    assert "is not a file" in complaint(tmp_path)


def test_a_name_twice_in_one_header(tmp_path):
    one = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    raw_file(tmp_path / "model.safetensors", f'{{"a":{one},"a":{one}}}'.encode(), b"\0" * 4)
    complaint(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_junk_is_refused_in_one_way(tmp_path, junk):
    path = tmp_path / "model.safetensors"
    for content in (junk, len(junk).to_bytes(8, "little") + junk):
        path.write_bytes(content)
        with suppress(BadCheckpoint):
            assert Checkpoint(tmp_path).names() == ()


def shards(folder, weight_map=None):
    there = tensors()
    names = list(there)
    halves = [names[:3], names[3:]]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save(folder / file, {name: there[name] for name in half})
    where = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    text = json.dumps({"weight_map": {**where, **(weight_map or {})}})
    (folder / INDEX).write_text(text)
    return files, there


@pytest.mark.parametrize("with_index", [True, False])
def test_shards(tmp_path, with_index):
    _, there = shards(tmp_path)
    if not with_index:
        (tmp_path / INDEX).unlink()
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names()) == set(there)
    for name, array in there.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


def test_shards_reached_through_symbolic_links(tmp_path):
    """Hugging Face's cache keeps the files elsewhere and links to them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    files, there = shards(blobs)
    for name in (*files, INDEX):
        (snapshot / name).symlink_to(blobs / name)
    assert set(Checkpoint(snapshot).names()) == set(there)


def test_missing_shard(tmp_path):
    files, _ = shards(tmp_path)
    (tmp_path / files[1]).unlink()
    message = complaint(tmp_path)
    assert f"lacks 1 of the 2 files that {INDEX} names: {files[1]}" in message


def test_index_promises_what_no_shard_has(tmp_path):
    files, _ = shards(tmp_path, {"model.ghost": "model-00001-of-00002.safetensors"})
    assert f"model.ghost (in {files[0]})" in complaint(tmp_path)


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "", ".", 5, "a\0b"]
)
def test_index_leading_out_of_the_folder(tmp_path, path):
    shards(tmp_path, {"model.norm.weight": path})
    assert "which is no file of this folder" in complaint(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_bad_index(tmp_path, index):
    shards(tmp_path)
    (tmp_path / INDEX).write_text(index)
    assert INDEX in complaint(tmp_path)


def test_the_same_tensor_in_two_files(tmp_path):
    save(tmp_path / "a.safetensors", {"x": np.ones(2, np.float32)})
    save(tmp_path / "b.safetensors", {"x": np.ones(2, np.float32)})
    assert "x stands both in a.safetensors and in b.safetensors" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model.bin", "can run code"),
        ("model_state.pdparams", "can run code"),
        ("model.gguf", "GGUF files"),
        ("adapter_config.json", "adapter"),
        ("README.md", "no .safetensors file"),
    ],
)
def test_weights_of_another_kind(tmp_path, file, words):
    (tmp_path / file).write_bytes(b"x")
    assert words in complaint(tmp_path)


def test_no_folder(tmp_path):
    assert "not a folder" in complaint(tmp_path / "nowhere")


def test_names_cannot_write_to_the_terminal(tmp_path):
    header = {"\x1b[31mred": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    raw_file(tmp_path / "model.safetensors", header, b"\0")
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(BadCheckpoint) as caught:
        checkpoint.read(checkpoint.names()[0])
    assert "\x1b" not in str(caught.value)
