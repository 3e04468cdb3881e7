"""Operators that were built for levels of processors elsewhere: real libraries, real processes,
and no compiler.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from building.tools import python, qinfer
from goldens import tiny
from qinfer.core.errors import Unsupported
from qinfer.core.store import make_once
from qinfer.cuda_ops.build import LIBRARY, build, plan_build, plan_level
from qinfer.cuda_ops.levels import LEVELS

ROOT = Path(__file__).resolve().parents[2]
HERE = [level.name for level in LEVELS.values() if not level.lacks()]
"""The levels whose operators this processor can run."""

pytestmark = pytest.mark.skipif(not HERE, reason="this processor has no level's instructions")


def built(plan):
    """The library, compiled for real."""
    try:
        return build(plan)
    except Unsupported as error:
        pytest.skip(str(error))


def replace(plan, content):
    """Other bytes as the library, with a manifest that is right, and a lock that nobody gets."""
    lock = plan.folder.with_name(f"{plan.folder.name}.lock")
    if lock.exists():
        lock.rmdir()
    make_once(plan.folder, lambda new: (new / LIBRARY).write_bytes(content), force=True)
    lock.unlink()
    lock.mkdir()


@pytest.fixture
def image(tmp_path, monkeypatch):
    """A cache with a library that runs here under every level's name. Nothing can be locked in it,
    nor, unless for root, be written; and there is no compiler.
    """
    library = built(plan_build()).read_bytes()
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/nonexistent")
    for level in LEVELS.values():
        replace(plan_level(level), library)
    folder = tmp_path / "cache" / "operators"
    folder.chmod(0o555)
    yield
    folder.chmod(0o755)


@pytest.fixture
def ask(tmp_path):
    checkpoint = tiny.write_checkpoint(tmp_path / "model", tiny.CASES["gqa"])
    limits = ["--max-tokens", "8", "--temperature", "0", "--kv-cache-memory", "32MiB", "--stats"]
    return ["run", "--model", str(checkpoint), *limits, "abc def"]


def test_an_image_answers_without_compiler_and_without_writing(image, ask, monkeypatch):
    code, out, err = qinfer(*ask, "--require-kernels")
    assert code == 0, err
    assert f"operators: native, compiled for {HERE[-1]}\n" in err
    assert "Compiling" not in err
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    assert qinfer(*ask)[:2] == (0, out)


def test_what_does_not_load_is_passed_over_with_a_line(image, ask, tmp_path):
    (tmp_path / "cache" / "operators").chmod(0o755)
    replace(plan_level(LEVELS[HERE[-1]]), b"no library")
    code, _, err = qinfer(*ask)
    assert code == 0, err
    lines = [line for line in err.splitlines() if line.startswith("Passing over")]
    assert len(lines) == 1
    assert f"for {HERE[-1]}: the native operators do not load" in lines[0]
    taken = f"native, compiled for {HERE[-2]}" if len(HERE) > 1 else "reference"
    assert f"operators: {taken}\n" in err


PRETEND = """
import sys
from qinfer.cuda_ops import levels
flags = sys.argv.pop()
levels.cpu_flags = lambda: flags
from qinfer.core.cli import main
main(sys.argv[1:])
"""


def test_a_library_for_more_than_the_processor_has_is_not_loaded(image, ask):
    flags = " ".join(LEVELS["x86-64-v3"].needs)
    _, err = (process := python("-c", PRETEND, *ask, flags)).communicate(timeout=120)
    assert process.returncode == 0, err
    assert "operators: native, compiled for x86-64-v3\n" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_level_s_operators_compute_what_they_should(name):
    """Each in a process of its own, as Paddle registers an operator's name once."""
    built(plan_level(LEVELS[name]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops"]
    command += ["-k", "not reference"]  # whose code is no other
    environment = {**os.environ, "QINFER_TARGET": name, "CXX": "/nonexistent"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
