import errno
import subprocess
import sys
import time

import huggingface_hub
import pytest
from huggingface_hub import errors

from qinfer.core.checkpoint.source import resolve_model
from qinfer.core.errors import BadCheckpoint


def complaint(reference):
    with pytest.raises(BadCheckpoint) as caught:
        resolve_model(reference)
    assert caught.value.exit_code == 5
    assert caught.value.remedy
    return str(caught.value)


@pytest.fixture
def hub(monkeypatch):
    """Replaces the download by what a test wants; returns the calls made."""
    calls = []

    def behave(outcome):
        def snapshot_download(repo, **options):
            calls.append((repo, options))
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return behave


def made(name, message="said by the server", cause=None):
    """An error of that class, whatever its constructor wants."""
    kind = getattr(errors, name)
    error = kind.__new__(kind)
    error.args = (message,)
    error.__cause__ = cause
    return error


def test_a_folder(tmp_path, monkeypatch, hub):
    calls = hub("unused")
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("org/name").resolve() == tmp_path / "org" / "name"
    assert resolve_model("~/org") == tmp_path / "org"
    assert not calls


@pytest.mark.parametrize(
    "path", ["./x/y", "../x", "/no/such", "~/nowhere", "x/y/", "a\\b", "name", "a/b/c", "", "a b/c"]
)
def test_no_such_path(path, hub, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    calls = hub("unused")
    assert "there is no folder" in complaint(path)
    assert not calls


@pytest.mark.parametrize("path", ["x\0y", "~nosuchuser/x", "x" * 5000])
def test_unusable_paths(path):
    complaint(path)


def test_a_file(tmp_path):
    for name, words in (("model.safetensors", "it is a file"), ("x.gguf", "GGUF")):
        (tmp_path / name).touch()
        assert words in complaint(str(tmp_path / name))


def test_the_hub_is_asked_for_data_only(tmp_path, hub):
    calls = hub(str(tmp_path))
    lines = []
    assert resolve_model("org/name@v1.0", progress=lines.append) == tmp_path
    repo, options = calls[0]
    assert (repo, options["revision"]) == ("org/name", "v1.0")
    allowed = options["allow_patterns"]
    assert "*.safetensors" in allowed
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*", ".pkl")) for pattern in allowed)
    assert "org/name at v1.0" in lines[0]


def test_bars_only_when_wanted(tmp_path, monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    enable_progress_bars()
    seen = []

    def snapshot_download(repo, **options):
        seen.append(are_progress_bars_disabled())
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    resolve_model("org/name")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    resolve_model("org/name", progress=lambda line: None)
    assert seen == [True, False]
    assert not are_progress_bars_disabled()


NO_ROUTE = ConnectionError("no route")


@pytest.mark.parametrize(
    ("error", "words", "remedy"),
    [
        (made("RepositoryNotFoundError"), "no such model on the hub", "spelling"),
        (made("GatedRepoError"), "is gated", "hf auth login"),
        (made("RevisionNotFoundError"), "no revision", "branches"),
        (made("HFValidationError"), "no valid Hugging Face id", "look like"),
        (
            made("LocalEntryNotFoundError", cause=NO_ROUTE),
            "cannot be reached: no route",
            "HF_ENDPOINT",
        ),
        (
            made("LocalEntryNotFoundError", cause=errors.OfflineModeIsEnabled("x")),
            "HF_HUB_OFFLINE is set",
            "Unset",
        ),
        (ConnectionError("reset"), "cannot be reached: reset", "HF_HUB_OFFLINE=1"),
        (OSError(errno.ENOSPC, "No space left"), "disk is full", "HF_HOME"),
        (made("HfHubHTTPError", "500 Server Error"), "HfHubHTTPError: 500", "Run it again"),
        (TimeoutError("timed out"), "TimeoutError: timed out", "Run it again"),
    ],
)
def test_what_the_hub_says(hub, error, words, remedy):
    hub(error)
    message = complaint("org/name@dev")
    assert words in message
    assert remedy in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_really_without_a_network(tmp_path, settings, words):
    """Nothing is patched here: the installed huggingface_hub itself fails, and quickly."""
    code = "from qinfer.core.checkpoint.source import resolve_model; resolve_model('org/name')"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **settings},
    )
    assert "BadCheckpoint" in done.stderr
    assert words in done.stderr
    assert time.monotonic() - begin < 30
