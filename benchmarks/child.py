"""The measuring side of a program under test: a process that loads once and runs on order."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

START_SECONDS = 600
RUN_SECONDS = 300


class ChildError(Exception):
    """The process ended, stayed silent or said something else than was asked."""


class Child:
    """Speaks the protocol of ``peers/serve.py``; whatever the program prints goes to a log."""

    def __init__(self, command: list[str]) -> None:
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.ready = self._answer("ready", START_SECONDS)

    def order(self, **order: Any) -> dict[str, Any]:
        """Run requests and return their timings."""
        self._send(order)
        return self._answer("run", RUN_SECONDS)

    def quit(self) -> dict[str, Any]:
        """End the process; returns what it says last (its peak memory)."""
        self._send({"quit": True})
        farewell = self._answer("bye", RUN_SECONDS)
        self.process.wait(RUN_SECONDS)
        return farewell

    def kill(self) -> None:
        """End the process whatever it does."""
        self.process.kill()
        self.process.wait()

    def _send(self, order: dict[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise ChildError(self._last_words()) from None

    def _answer(self, event: str, seconds: float) -> dict[str, Any]:
        assert self.process.stdout
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.process.wait()
            raise ChildError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if answer.get("event") != event:
            self.kill()
            raise ChildError(f"said {line.strip()[:200]} instead of {event}")
        return answer

    def _last_words(self) -> str:
        """The last line of the log that says something: usually the exception."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1][:300] if lines else f"ended with status {self.process.returncode}"


def peer_script(name: str) -> str:
    """Path of a script in ``peers/``."""
    return str(Path(__file__).parent / "peers" / name)
