"""The command itself: quick help, errors as messages, exit codes; and the doctor."""

from __future__ import annotations

import json

import pytest


def test_help_and_version_import_nothing_heavy_and_no_subcommand(python):
    for option in ("--help", "--version"):
        done = python("-X", "importtime", "-m", "qinfer", option)
        assert done.returncode == 0
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "click" in imported
        assert not imported & {"numpy", "paddle", "rich", "pluggy", "qinfer.core.cli.list_plugins"}


def test_help_lists_every_command_and_broken_plugins_do_not_matter(qinfer):
    done = qinfer("--help", on="broken damaged")
    assert done.returncode == 0
    for name in ("run", "chat", "build-ops", "list-plugins", "doctor"):
        assert f"  {name}  " in done.stdout


def test_unknown_command(qinfer):
    done = qinfer("list-plugin")
    assert done.returncode == 2
    assert 'did you mean "list-plugins"?' in done.stderr


def test_unknown_option(qinfer):
    done = qinfer("list-plugins", "--jsn")
    assert done.returncode == 2
    assert "--json" in done.stderr


RAISING = """
import sys
from qinfer.core import cli, errors
import click
@click.command()
def command():
    {body}
sys.modules["fake"] = type(sys)("fake")
sys.modules["fake"].command = command
cli.COMMANDS["doctor"] = ("fake", "")
cli.main(["doctor"])
"""


@pytest.mark.parametrize(
    ("body", "code", "lines"),
    [
        ("raise errors.BadInput('no', remedy='yes')", 5, ["qinfer: error: no", "yes"]),
        ("raise errors.Unsupported('no')", 4, ["qinfer: error: no"]),
        ("raise KeyboardInterrupt", 130, [""]),
        ("raise click.Abort", 130, [""]),
        (
            "raise ValueError('a\\nb')",
            1,
            ["qinfer: internal error: ValueError: a b", "Set QINFER_DEBUG=1 to see the traceback."],
        ),
        ("raise BrokenPipeError", 141, []),
        ("return 4", 4, []),
        ("click.get_current_context().exit(3)", 3, []),
        ("sys.exit(6)", 6, []),
        ("return None", 0, []),
    ],
)
def test_errors_become_messages_and_exit_codes(python, body, code, lines):
    done = python("-c", RAISING.format(body=body))
    assert done.returncode == code
    assert done.stderr.splitlines() == lines


@pytest.mark.parametrize("error", ["errors.BadInput('no')", "ValueError('no')"])
def test_debug_shows_the_traceback(python, error):
    done = python("-c", RAISING.format(body=f"raise {error}"), QINFER_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_full_disk_is_reported_once(python):
    full = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
    done = python("-c", full + RAISING.format(body="print(1)"))
    assert done.returncode == 1
    assert done.stderr == "qinfer: error: cannot write the output: No space left on device\n"


@pytest.mark.slow
def test_doctor(qinfer, tmp_path):
    done = qinfer("doctor", "--json", on="broken", QINFER_CACHE=str(tmp_path / "cache"))
    document = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in document["findings"]}
    assert {"python", "processor", "cores", "memory", "paddle", "c++", "operators", "cache"} <= set(
        findings
    )
    assert findings["cache"]["state"] == "ok"
    # It makes nothing but what Paddle cannot load without (see qinfer.core.hardware.openmp).
    assert {path.name for path in (tmp_path / "cache").glob("*")} <= {"openmp"}
    problems = [f for f in document["findings"] if f["state"] == "problem"]
    assert done.returncode == 4
    assert not document["ok"]
    assert any('"segfault" (acme-broken 0.1)' in f["value"] for f in problems)
    assert all(f["remedy"] for f in problems)
