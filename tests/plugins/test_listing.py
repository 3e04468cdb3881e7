"""``qinfer list-plugins``: what is listed, how it looks, and what --check survives."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qinfer.core.registry import check
from qinfer.core.registry.discovery import discover


def test_third_party_plugins_are_listed_without_importing_anything(qinfer):
    done = qinfer("list-plugins", "--json", on="good broken")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["api"] == "1.4"
    assert document["damaged"] == []
    rows = {(row["kind"], row["name"]): row for row in document["plugins"]}
    assert rows["model", "acme"] == {
        "kind": "model",
        "name": "acme",
        "distribution": "acme-good",
        "version": "1.2",
        "aliases": ["acme-one"],
        "reads": ["AcmeForCausalLM", "acme"],
        "value": "acme_good.m_acme:P",
    }
    assert ("model", "qwen2") in rows
    assert ("observer", "segfault") in rows


def test_a_distribution_found_twice_counts_once(qinfer, sites):
    path = os.pathsep.join([str(sites["good"])] * 2 + [f"{sites['good']}/."])
    done = qinfer("list-plugins", "--json", "--kind", "observer", PYTHONPATH=path)
    assert [row["name"] for row in json.loads(done.stdout)["plugins"]] == ["noisy", "watch"]


def test_the_first_copy_on_the_path_hides_later_versions(qinfer, sites, tmp_path):
    old = tmp_path / "site" / "acme_good-0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: Acme_Good\nVersion: 0.1\n")
    path = os.pathsep.join([str(old.parent), str(sites["good"])])
    done = qinfer("list-plugins", "--json", "--kind", "observer", PYTHONPATH=path)
    assert json.loads(done.stdout)["plugins"] == []


def test_damaged_metadata_is_named_and_hurts_nobody(qinfer):
    done = qinfer("list-plugins", on="damaged good")
    assert done.returncode == 0
    assert "acme-good 1.2" in done.stdout
    assert "nameless-1.0" in done.stderr
    assert "malformed" in done.stderr
    assert "ghost" not in done.stdout


NAMES = ["acme", "qwen1_5", "weight_only_int8", "Qwen2ForCausalLM", "acme-good 1.2", "a8w8_fp8"]


def test_piped_output_is_plain_and_whole(qinfer):
    done = qinfer("list-plugins", on="good", COLUMNS="40", FORCE_COLOR="1")
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("KIND")
    for name in NAMES:
        assert name in done.stdout


def test_a_narrow_terminal_loses_no_name(sites):
    master, slave = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(sites["good"]), "COLUMNS": "48"}
    command = [sys.executable, "-m", "qinfer", "list-plugins"]
    child = subprocess.Popen(command, stdout=slave, env=env)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # how Linux reports that the other end is closed
        pass
    finally:
        os.close(master)
    assert child.wait() == 0
    text = shown.decode().replace("\r\n", "\n")
    for name in NAMES:
        assert name in text
    assert max(map(len, text.splitlines())) <= 48


def test_a_closed_pipe_is_quiet(sites):
    script = (
        "import sys\nfrom qinfer.core.registry import discovery\n"
        "found = discovery.discover()\n"
        "discovery.discover = lambda: discovery.Installed(plugins=found.plugins * 3000)\n"
        "sys.argv[:] = ['qinfer', 'list-plugins']\n"
        "from qinfer.core.cli import main\nmain()\n"
    )
    # Unbuffered, Python itself loses the rest of a half-done write without an error.
    env = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", script], env=env, text=True, **both)
    assert child.stdout.readline().startswith("KIND")
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait() == 141


CHECKED = {
    "noimport": "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    "raises": "ZeroDivisionError: division by zero",
    "sysexit": "SystemExit: 7",
    "osexit": "ended the process with exit code 0 on import",
    "segfault": "crashed with SIGSEGV on import",
    "hang": "still loading after 5 seconds",
    "api3": "speaks plugin API 3.0, this qinfer speaks 1.4",
    "unmarked": 'defines "step_done" without @hookimpl',
}


@pytest.mark.slow
def test_check_survives_every_way_to_break(qinfer):
    options = ["--json", "--check", "--kind", "observer", "--timeout", "5"]
    done = qinfer("list-plugins", *options, on="good broken hanging")
    assert done.returncode == 3, done.stderr
    checks = {row["name"]: row["check"] for row in json.loads(done.stdout)["plugins"]}
    for name, problem in CHECKED.items():
        assert not checks[name]["ok"], name
        assert problem in checks[name]["problems"][0]
    assert checks["watch"] == {
        "ok": True,
        "summary": "looks on",
        "api": "1.0",
        "problems": [],
        "remedy": "",
    }
    assert checks["noisy"]["ok"]
    assert checks["mismatch"]["ok"]
    assert "['nowhere']" in checks["mismatch"]["problems"][0]


def test_ctrl_c_does_not_wait_for_a_plugin_that_hangs(sites):
    command = [sys.executable, "-m", "qinfer", "list-plugins", "--check", "--kind", "observer"]
    env = {**os.environ, "PYTHONPATH": str(sites["hanging"])}
    running = subprocess.Popen(command, env=env, cwd="/", stdout=subprocess.PIPE, text=True)
    children = Path(f"/proc/{running.pid}/task")
    while not (child := "".join(path.read_text() for path in children.glob("*/children"))):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=30)[0] == ""
    assert running.returncode == 130
    assert not Path(f"/proc/{int(child)}").exists()


def test_check_passes_when_all_is_well(qinfer):
    done = qinfer("list-plugins", "--check", "--kind", "observer", on="good")
    assert done.returncode == 0, done.stdout
    assert "ok      observer acme-good:watch" in done.stdout


@pytest.mark.parametrize("seconds", ["nan", "0", "-1"])
def test_a_timeout_that_is_none_is_refused(qinfer, seconds):
    done = qinfer("list-plugins", "--check", "--timeout", seconds)
    assert done.returncode == 2
    assert "Invalid value for '--timeout'" in done.stderr


def test_what_loads_takes_one_process(monkeypatch):
    loads = []

    def load(records, running, start=check._load):
        loads.append(len(records))
        return start(records, running)

    monkeypatch.setattr(check, "_load", load)
    schemes = [record for record in discover().plugins if record.kind == "quant"]
    assert all(result.ok for result in check.check_all(schemes))
    assert loads == [len(schemes)]
    monkeypatch.setattr(check, "TOGETHER_SECONDS", 0.0)  # as if the first of them hung
    assert all(result.ok for result in check.check_all(schemes[:2]))
    assert loads == [len(schemes), 2, 1, 1]


def test_no_plugin_of_a_kind_is_no_error(qinfer):
    done = qinfer("list-plugins", "--kind", "observer")
    assert done.returncode == 0
    assert done.stdout.startswith("KIND")


def test_the_built_in_plugins_say_the_same_in_info_and_entry_points():
    mine = [record for record in discover().plugins if record.dist == "qinfer-paddle"]
    assert {record.kind for record in mine} == {"model", "quant", "backend"}
    found = {record.name: check.examine(record.kind, record.dist, record.name) for record in mine}
    assert {name: check.problems for name, check in found.items()} == dict.fromkeys(found, ())
