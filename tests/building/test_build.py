"""Building the native operators: once, whoever is killed.

The compiler is a script that writes down how it was called.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from building.tools import python, qinfer, script
from qinfer.core.cli.doctor import EXAMINATIONS
from qinfer.core.errors import Unsupported
from qinfer.cuda_ops import build as module
from qinfer.cuda_ops.build import build, plan_build

BUILD = "from qinfer.cuda_ops.build import build, plan_build; print(build(plan_build()))"


def calls(folder: Path, word: str) -> list[str]:
    """The compiler's calls with that argument."""
    log = folder / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if word in line.split()]


def test_it_is_built_once(compiler):
    told = []
    plan = plan_build()
    assert not plan.is_built
    library = build(plan, told.append)
    assert library == plan.library
    assert library.is_file()
    assert len(told) == 1
    files = {path.name for path in library.parent.iterdir()}
    assert files == {library.name, "facts.json", "manifest.json"}
    assert plan_build().is_built
    build(plan_build(), told.append)
    assert len(calls(compiler, "-shared")) == len(told) == 1
    sources = [*module.SOURCES.glob("*.cc"), *module.SOURCES.glob("cpu/*.cc")]
    assert len(calls(compiler, "-c")) == len(sources)
    build(plan_build(), force=True)
    assert len(calls(compiler, "-shared")) == 2


@pytest.mark.parametrize("content", ["", "mads\n"])
def test_a_damaged_library_is_built_again(compiler, content):
    library = build(plan_build())
    library.write_text(content)
    assert not plan_build().is_built
    assert build(plan_build()).read_text() == "made\n"


def test_the_folder_depends_on_sources_target_and_compiler(compiler, tmp_path, monkeypatch):
    folders = {plan_build().folder}
    monkeypatch.setenv("QINFER_TARGET", "-mavx2 -mfma -mf16c")
    folders.add(plan_build().folder)
    sources = shutil.copytree(module.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(module, "SOURCES", sources)
    assert plan_build().folder in folders
    with next(sources.glob("cpu/*.h")).open("a") as file:
        file.write("// changed\n")
    folders.add(plan_build().folder)
    monkeypatch.setenv("CXX", str(script(compiler / "other", "#!/bin/sh\necho other 2\n")))
    folders.add(plan_build().folder)
    assert len(folders) == 4


def test_what_one_processor_compiled_is_not_run_on_another(compiler, monkeypatch):
    """The cache may have been moved, or be a network's; the other may even have the same name."""
    here = build(plan_build())
    flags = module.cpu_flags()
    monkeypatch.setattr(module, "cpu_flags", lambda: f"{flags} one_more")
    assert not plan_build().is_built
    assert build(plan_build()) != here
    assert len(calls(compiler, "-shared")) == 2
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)
    assert plan_build().is_built


def test_what_was_compiled_for_a_named_target_serves_every_processor(compiler, monkeypatch):
    monkeypatch.setenv("QINFER_TARGET", "-march=x86-64-v3 -mtune=generic")
    here = build(plan_build())
    monkeypatch.setattr(module, "cpu_flags", lambda: "fpu sse2 avx2")
    monkeypatch.setattr(module, "cpu_name", lambda: "Another processor")
    assert build(plan_build()) == here
    assert len(calls(compiler, "-shared")) == 1
    monkeypatch.setenv("QINFER_TARGET", "-march=x86-64-v3 -mtune=native")
    assert not plan_build().is_built


def test_a_target_beyond_the_processor_is_refused(compiler, monkeypatch):
    """Its library may have come with an image: an illegal instruction would end the process."""
    says = 'case "$*" in *v4*-dM*) printf "#define __AVX2__ 1\\n#define __AVX512F__ 1\\n";;'
    says += ' *-dM*) echo "#define __AVX2__ 1";; *) echo other 2;; esac'
    monkeypatch.setenv("CXX", str(script(compiler / "other", f"#!/bin/sh\n{says}\n")))
    monkeypatch.setenv("QINFER_TARGET", "-march=x86-64-v4")
    with pytest.raises(Unsupported, match="with AVX512F, which this one does not have"):
        plan_build()
    monkeypatch.setenv("QINFER_TARGET", "-march=x86-64-v3")
    assert not plan_build().is_built


def test_the_target_is_what_the_environment_says(compiler, monkeypatch):
    build(plan_build())
    assert len(calls(compiler, "-march=native")) > 1
    monkeypatch.setenv("QINFER_TARGET", "-mavx2 -mfma")
    (compiler / "calls").unlink()
    build(plan_build())
    assert not [line for line in calls(compiler, "-c") if "-march=native" in line.split()]
    assert "-mfma" in calls(compiler, "-shared")[0].split()


def test_a_compiler_that_does_not_exist_is_named_and_replaced_by_none(compiler, monkeypatch):
    monkeypatch.setenv("CXX", "clang++-99 -O2")
    (compiler / "g++").symlink_to(compiler / "c++")
    monkeypatch.setenv("PATH", str(compiler), prepend=":")
    with pytest.raises(Unsupported, match=r"CXX names clang\+\+-99 .* no such program"):
        plan_build()
    found = findings()
    assert found["c++"].state == "warning"
    assert "clang++-99" in found["c++"].value
    monkeypatch.delenv("CXX")
    assert not plan_build().is_built


def test_a_compiler_with_a_launcher_and_flags(compiler, tmp_path, monkeypatch):
    launcher = script(tmp_path / "launch", '#!/bin/sh\necho "$@" >> "$0.log"\nexec "$@"\n')
    bare = plan_build().folder
    monkeypatch.setenv("CXX", f"{launcher} {compiler / 'c++'} -O1")
    assert plan_build().folder != bare
    assert build(plan_build()).is_file()
    launched = (tmp_path / "launch.log").read_text().splitlines()
    assert {line.split()[1] for line in launched} == {"-O1"}
    assert len(calls(compiler, "-shared")) == 1


def test_a_compiler_that_cannot_tell_the_processor_builds_for_any(compiler):
    (compiler / "old").touch()
    build(plan_build())
    assert len(calls(compiler, "-march=native")) == 1
    assert len(calls(compiler, "-shared")) == 1


def test_a_killed_build_leaves_nothing_that_counts(compiler):
    (compiler / "slow").write_text("60")
    first = python("-c", BUILD, start_new_session=True)
    deadline = time.monotonic() + 60
    while not calls(compiler, "-c") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    plan = plan_build()
    assert list(plan.folder.parent.glob("*.tmp-*"))
    assert not plan.is_built
    (compiler / "slow").unlink()
    assert build(plan).is_file()
    assert not list(plan.folder.parent.glob("*.tmp-*"))


def test_two_processes_at_once_build_once(compiler):
    (compiler / "slow").write_text("0.5")
    both = [python("-c", BUILD) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == [(f"{plan_build().library}\n", "")] * 2
    assert len(calls(compiler, "-shared")) == 1


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(compiler, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QINFER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(Unsupported, match=r"cannot be built: .* could not be written") as caught:
        build(plan_build())
    assert "QINFER_CACHE" in caught.value.remedy


def test_the_command(compiler):
    code, out, err = qinfer("build-ops")
    assert (code, out) == (0, f"{plan_build().library}\n")
    assert err.startswith("Compiling")
    assert qinfer("build-ops") == (0, out, "already built\n")
    code, out, err = qinfer("build-ops", "--json", "--force")
    library = str(plan_build().library)
    assert json.loads(out) == {"arch": "native", "library": library, "compiled": True}
    assert len(calls(compiler, "-shared")) == 2


def test_the_command_with_a_failing_compiler(compiler):
    script(
        compiler / "c++",
        "#!/bin/sh\necho 'x.cc:1: note: boom' >&2\necho 'error: bang' >&2\nexit 1\n",
    )
    code, out, err = qinfer("build-ops")
    assert (code, out) == (4, "")
    assert "c++ says: error: bang\nx.cc:1: note: boom\n" in err
    assert not plan_build().is_built


def test_the_command_on_a_full_disk(compiler):
    says = "x.s: Fatal error: cannot write x.o: 'No space left on device'"
    script(compiler / "c++", f'#!/bin/sh\necho "{says}" >&2\nexit 1\n')
    code, out, err = qinfer("build-ops")
    assert (code, out) == (4, "")
    assert says in err
    assert "Make room in the cache folder" in err
    assert "CXX" not in err


def findings():
    names = ("_compilers", "operator_findings")
    found = [f for examine in EXAMINATIONS if examine.__name__ in names for f in examine()]
    return {finding.name: finding for finding in found}


def test_doctor(compiler, monkeypatch):
    assert findings()["c++"].state == "ok"
    assert "not built yet" in findings()["operators"].value
    library = build(plan_build())
    assert findings()["operators"].value == f"built for this processor at {library}"
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(compiler))  # its "c++" would do
    (compiler / "c++").unlink()
    found = findings()
    assert (found["c++"].state, found["operators"].state) == ("warning", "warning")
    assert found["operators"].value == (
        "cannot be built: there is no C++ compiler to build the native operators with"
    )
    assert all("g++" in finding.remedy for name, finding in found.items() if name != "nvcc")
