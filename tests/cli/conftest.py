"""The commands over a fake model: inside this process, and as real processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fake_llm
from qinfer.core.cli import COMMANDS
from qinfer.core.cli.chat import command as chat
from qinfer.core.cli.run import command as run
from qinfer.core.errors import QinferError

TESTS = Path(__file__).parent.parent
Run = Callable[..., Result]


@pytest.fixture
def qinfer(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call a command in this process; the result's exit_code is the process's."""
    monkeypatch.setitem(sys.modules, "qinfer.core.llm", fake_llm)
    fake_llm.LLM.made.clear()
    assert {"run", "chat"} <= COMMANDS.keys()

    def call(*args: str, input: str | bytes | None = None) -> Result:
        command = {"run": run, "chat": chat}[args[0]]
        result = CliRunner().invoke(command, list(args[1:]), input=input, standalone_mode=False)
        if isinstance(result.return_value, int):
            result.exit_code = result.return_value
        error = result.exception
        if isinstance(error, QinferError) or hasattr(error, "exit_code"):
            result.exit_code = error.exit_code  # type: ignore[union-attr]
        elif error is not None and not isinstance(error, SystemExit):
            raise error
        return result

    return call


@pytest.fixture
def process() -> Callable[..., subprocess.Popen[bytes]]:
    """Start the command as a process of its own."""

    def start(*args: str, **env: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-m", "fake_llm", *args],
            stdin=pipe, stdout=pipe, stderr=pipe,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "", **env},
        )  # fmt: skip

    return start
