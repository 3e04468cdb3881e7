"""The first moments of ``qinfer``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(tmp_path):
    """The first thing that it imports from elsewhere is click."""
    interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"
    (tmp_path / "click.py").write_text(interrupt)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert 'qinfer = "qinfer.__main__:main"' in (ROOT / "pyproject.toml").read_text()
    for command in (["-m", "qinfer"], ["-c", "from qinfer.__main__ import main; main()"]):
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd="/", capture_output=True, check=False
        )
        assert (done.returncode, done.stderr, done.stdout) == (130, b"\n", b"")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("list-plugins >&-", 0, ""),
        ("--help >&-", 0, ""),
        ("run <&-", 5, "the prompt is empty"),
        ("chat --nonsense 2>&-", 2, ""),
        ("list-plugins --json <&- >&- 2>&-", 0, ""),
    ],
)
def test_closed_streams_lead_nowhere(command, code, words):
    shell = ["/bin/sh", "-c", f"{sys.executable} -m qinfer {command}"]
    done = subprocess.run(shell, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "internal" not in done.stderr
