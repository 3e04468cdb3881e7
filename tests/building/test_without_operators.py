"""An answer without the native operators."""

import shutil
from types import SimpleNamespace

import pytest

from building.tools import qinfer, script
from goldens import tiny
from qinfer.core.errors import Unsupported, UsageError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", tiny.CASES["gqa"])


@pytest.fixture(scope="module")
def ask(checkpoint):
    """Arguments of a run that takes the likeliest tokens."""
    limits = ["--max-tokens", "8", "--temperature", "0", "--kv-cache-memory", "32MiB"]
    return ["run", "--model", str(checkpoint), *limits, "abc def"]


NO_COMPILER = "there is no C++ compiler"


@pytest.fixture(scope="module")
def answer(ask):
    """What the operators that are used here answer."""
    code, out, _ = qinfer(*ask)
    assert code == 0
    return out


@pytest.mark.parametrize("reason", [NO_COMPILER, "c++ says: boom"])
def test_a_run_without_native_operators(compiler, monkeypatch, ask, answer, reason):
    script(compiler / "c++", "#!/bin/sh\necho boom >&2\nexit 1\n")
    if reason == NO_COMPILER:
        (compiler / "c++").unlink()
        monkeypatch.delenv("CXX")
        for tool in ("sh", "cat", "grep"):  # Paddle calls them as it is imported
            (compiler / tool).symlink_to(shutil.which(tool))
        monkeypatch.setenv("PATH", str(compiler))
    code, out, err = qinfer(*ask)
    assert (code, out) == (0, answer)
    lines = [line for line in err.splitlines() if "reference" in line]
    assert len(lines) == 1
    assert reason in lines[0]
    code, out, err = qinfer(*ask, "--require-kernels")
    assert (code, out) == (4, "")
    assert "qinfer: error: " in err
    assert reason in err


def test_operators_of_another_name_are_refused(monkeypatch):
    from qinfer.cuda_ops import native

    monkeypatch.setenv(native.CHOICE, "refrence")
    with pytest.raises(UsageError, match="QINFER_OPERATORS is 'refrence'"):
        native.use_native(require=False, progress=print)


def test_a_library_that_does_not_load_leaves_the_reference(tmp_path, monkeypatch):
    from qinfer.cuda_ops import native, table

    broken = tmp_path / "libqinfer_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "candidates", lambda progress: [SimpleNamespace(level=None)])
    monkeypatch.setattr(native, "build", lambda plan, progress: broken)
    monkeypatch.delenv(native.CHOICE, raising=False)
    said: list[str] = []
    assert native.use_native(require=False, progress=said.append) == "operators: reference"
    assert "do not load" in said[0]
    assert table.TABLE["linear"].run is table.TABLE["linear"].versions[table.REFERENCE]
    with pytest.raises(Unsupported, match="do not load"):
        native.use_native(require=True, progress=said.append)
