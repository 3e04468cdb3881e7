"""Libraries for levels of processors: which of them a run takes, and what it never takes.

The compiler is a script (conftest.py), so a library is a line of text, and processors are lists of
flags; a real library is loaded in test_images.py.
"""

import json
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from building.tools import qinfer
from qinfer.core.cli.doctor_paddle import operator_findings
from qinfer.core.errors import Unsupported, UsageError
from qinfer.cuda_ops import build as build_module
from qinfer.cuda_ops import levels
from qinfer.cuda_ops.build import build, plan_build, plan_level
from qinfer.cuda_ops.choose import candidates
from qinfer.cuda_ops.levels import LEVELS

pytestmark = pytest.mark.skipif(not LEVELS, reason="levels are x86 processors'")

NEHALEM = "fpu sse sse2 ssse3 cx16 sse4_1 sse4_2 popcnt pni lahf_lm"
HASWELL = f"{NEHALEM} fma movbe xsave avx f16c abm bmi1 avx2 bmi2"
SKYLAKE_X = f"{HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl"
CASCADE_LAKE = f"{SKYLAKE_X} avx512_vnni"
PROCESSORS = {
    "Nehalem": (NEHALEM, None),
    "Sandy Bridge": (f"{NEHALEM} xsave avx", None),
    "Haswell": (HASWELL, "x86-64-v3"),
    "Alder Lake": (f"{HASWELL} avx_vnni", "x86-64-v3"),
    "Skylake-X": (SKYLAKE_X, "x86-64-v4"),
    "Cascade Lake": (CASCADE_LAKE, "avx512-vnni"),
    "Cooper Lake": (f"{CASCADE_LAKE} avx512_bf16", "avx512-vnni"),
    "Ice Lake": (f"{CASCADE_LAKE} avx512ifma avx512vbmi avx512_vbmi2", "avx512-vnni"),
    "Zen 4": (f"{CASCADE_LAKE} avx512vbmi avx512_bf16", "avx512-bf16"),
    "no /proc/cpuinfo": ("", None),
}
SPELLED = {
    "LZCNT": "abm",
    "SSE3": "pni",
    "LAHFSAHF": "lahf_lm",
    "SAHF": "lahf_lm",
    "BMI": "bmi1",
    "CRC32": "sse4_2",
}
"""Where a compiler's macro and Linux's flag differ by more than case and underscores."""


@pytest.fixture
def processor(monkeypatch):
    """Have another processor."""

    def become(flags):
        for module in (levels, build_module):
            monkeypatch.setattr(module, "cpu_flags", lambda: flags)

    return become


@pytest.fixture
def image(compiler, monkeypatch):
    """A cache with a library for each level, and no compiler any more."""
    for level in LEVELS.values():
        build(plan_level(level))
    monkeypatch.setenv("CXX", "/nonexistent")


def chosen():
    """The name of what a run takes, None for nothing, and what it says."""
    said = []
    try:
        return next(candidates(said.append)).name, said
    except Unsupported:
        return None, said


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_best_that_runs_is_taken(image, processor, name):
    flags, expected = PROCESSORS[name]
    processor(flags)
    assert chosen() == (expected, [])


@given(st.sets(st.sampled_from(sorted(set(PROCESSORS["Zen 4"][0].split())))))
def test_no_level_runs_without_all_that_it_needs(flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "cpu_flags", lambda: " ".join(flags))
        runs = [level.name for level in LEVELS.values() if not level.lacks()]
    assert runs == list(LEVELS)[: len(runs)]  # each needs all that the one before needs
    assert not runs or {"avx2", "fma"} <= flags
    assert len(runs) < 2 or "avx512bw" in flags


@pytest.mark.skipif(not shutil.which("g++"), reason="needs GCC")
@pytest.mark.parametrize("name", LEVELS)
def test_a_level_names_all_that_the_compiler_may_use(name):
    """Else a library would be loaded that ends the process with an illegal instruction."""

    def macros(*flags):
        command = ["g++", *flags, "-dM", "-E", "-x", "c++", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(done.stderr)
        found = re.findall(r"^#define __([A-Z0-9_]+?)__ 1$", done.stdout, re.M)
        return {macro.replace("_", "") for macro in found}

    used = macros(*LEVELS[name].target) - macros()
    assert {"AVX2", "FMA", "BMI2"} <= used
    flags = {flag.replace("_", "").upper() for flag in LEVELS[name].needs}
    flags |= {macro for macro, flag in SPELLED.items() if flag in LEVELS[name].needs}
    assert used - flags == set()


def test_what_is_built_for_the_processor_comes_first_and_compiling_last(
    compiler, processor, monkeypatch
):
    processor(HASWELL)
    assert chosen() == ("native", [])  # to be compiled
    build(plan_level(LEVELS["x86-64-v3"]))
    build(plan_level(LEVELS["x86-64-v4"]))
    assert chosen() == ("x86-64-v3", [])
    build(plan_build())
    assert chosen() == ("native", [])
    monkeypatch.setenv("QINFER_TARGET", "x86-64-v3")
    assert chosen() == ("x86-64-v3", [])
    monkeypatch.setenv("QINFER_TARGET", "-mavx2")
    monkeypatch.setattr(build_module, "instructions", lambda *_: set())
    assert chosen() == ("target", [])


def test_a_damaged_library_is_passed_over_with_a_line(image, processor):
    processor(SKYLAKE_X)
    best = plan_level(LEVELS["x86-64-v4"])
    best.library.write_text("mads\n")
    name, said = chosen()
    assert name == "x86-64-v3"
    assert len(said) == 1
    assert f"{best.folder} is damaged" in said[0]
    assert "build-ops --arch x86-64-v4" in said[0]
    plan_level(LEVELS["avx512-vnni"]).library.unlink()  # which would not run here anyhow
    assert len(chosen()[1]) == 1


def test_libraries_of_other_sources_are_not_taken(image, tmp_path, processor, monkeypatch):
    processor(HASWELL)
    sources = shutil.copytree(build_module.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(build_module, "SOURCES", sources)
    next(sources.glob("cpu/*.h")).write_text("// changed\n")
    assert chosen() == (None, [])
    assert plan_level(LEVELS["x86-64-v3"]).reason == "changed since the last build: the sources"


def test_the_environment_names_a_level(compiler, processor, monkeypatch):
    processor(HASWELL)
    monkeypatch.setenv("QINFER_TARGET", "x86-64-v3")
    assert plan_build().folder == plan_level(LEVELS["x86-64-v3"]).folder
    monkeypatch.setenv("QINFER_TARGET", "avx512-vnni")
    with pytest.raises(Unsupported, match=r"with avx512f, .*avx512_vnni, which this one does not"):
        plan_build()
    monkeypatch.setenv("QINFER_TARGET", "haswell")
    with pytest.raises(UsageError, match="no level of processors") as caught:
        plan_build()
    assert "x86-64-v3" in caught.value.remedy


def test_the_command(compiler):
    code, out, err = qinfer("build-ops", "--arch", "all")
    assert code == 0, err
    assert out.split() == [str(plan_level(level).library) for level in LEVELS.values()]
    assert [line.split()[4] for line in err.splitlines()] == list(LEVELS)
    code, out, err = qinfer("build-ops", "--arch", "x86-64-v4", "--arch", "native", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(line["arch"], line["compiled"]) for line in found] == [
        ("x86-64-v4", False),
        ("native", True),
    ]
    code, out, err = qinfer("build-ops", "--arch", "avx2")
    assert (code, out) == (2, "")
    assert "--arch 'avx2'" in err
    assert "x86-64-v3, x86-64-v4" in err


def test_doctor_does_not_say_that_the_level_asked_for_is_built_before_it_is(compiler, monkeypatch):
    if LEVELS["x86-64-v3"].lacks():
        pytest.skip("it is refused here")
    monkeypatch.setenv("QINFER_TARGET", "x86-64-v3")
    assert next(operator_findings()).value.startswith("not built yet")
    library = build(plan_build())
    said = next(operator_findings()).value
    assert said == f"built for x86-64-v3, as QINFER_TARGET says, at {library}"


def test_doctor_says_which_are_built_and_what_is_loaded(compiler, monkeypatch):
    def findings():
        return {finding.name: finding for finding in operator_findings()}

    assert list(findings()) == ["operators"]
    build(plan_level(LEVELS["x86-64-v3"]))
    broken = build(plan_level(LEVELS["avx512-bf16"]))
    broken.write_text("")
    monkeypatch.setenv("CXX", "/nonexistent")
    found = findings()
    assert list(found) == ["operators", *LEVELS]
    if not LEVELS["x86-64-v3"].lacks():
        assert found["operators"].value.startswith("built for x86-64-v3, the best level ")
        assert found["x86-64-v3"].value == "built; runs here"
    assert found["x86-64-v4"].value.startswith("not built; ")
    assert found["avx512-bf16"].state == "warning"
    assert "damaged" in found["avx512-bf16"].value
    assert "--arch avx512-bf16" in found["avx512-bf16"].remedy
