"""An answer without the native operators, or with some compiled for less than this processor."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from building.tools import qinfer, script
from goldens import tiny
from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.hardware.machine import cpu_features
from qinfer.cuda_ops.build import build, plan_build

ROOT = Path(__file__).resolve().parents[2]


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


VARIANTS = {
    "avx512bw": "-mavx2 -mfma -mf16c",
    "avx512_vnni": "-march=x86-64-v4",  # AVX-512 without VNNI and BF16
}
"""Flags that leave out the code for a feature."""


@pytest.mark.slow
@pytest.mark.parametrize("feature", VARIANTS)
def test_operators_compiled_for_less_than_this_processor(monkeypatch, feature):
    if feature not in cpu_features():
        pytest.skip(f"without {feature} the code is the one that tests/ops runs anyhow")
    monkeypatch.setenv("QINFER_TARGET", VARIANTS[feature])
    try:
        assert build(plan_build()).is_file()
    except Unsupported as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops"]
    command += ["-k", "not reference"]  # whose code is no other
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_operators_of_another_name_are_refused(monkeypatch):
    from qinfer.cuda_ops import native

    monkeypatch.setenv(native.CHOICE, "refrence")
    with pytest.raises(UsageError, match="QINFER_OPERATORS is 'refrence'"):
        native.use_native(require=False, progress=print)


def test_a_library_that_does_not_load_leaves_the_reference(tmp_path, monkeypatch):
    from qinfer.cuda_ops import native, table

    broken = tmp_path / "libqinfer_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "plan_build", lambda: None)
    monkeypatch.setattr(native, "build", lambda plan, progress: broken)
    monkeypatch.delenv(native.CHOICE, raising=False)
    said: list[str] = []
    assert native.use_native(require=False, progress=said.append) == "operators: reference"
    assert "do not load" in said[0]
    assert table.TABLE["linear"].run is table.TABLE["linear"].versions[table.REFERENCE]
    with pytest.raises(Unsupported, match="do not load"):
        native.use_native(require=True, progress=said.append)
