"""Start-up times of whole processes, as someone at a shell waits for them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

QUESTION = "What is the capital of France?"
PATIENCE_SECONDS = 120


@dataclass(kw_only=True)
class Command:
    """A command line; timed until it ends or, with ``first_byte``, until it says something."""

    name: str
    words: list[str]
    first_byte: bool = False
    seconds: list[float] = field(default_factory=list)
    missing: str = ""

    def run(self) -> None:
        """Run once and note the time, or why it cannot be timed."""
        if self.missing:
            return
        start = time.perf_counter()
        process = subprocess.Popen(self.words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        try:
            said = process.stdout.read(1)
            if self.first_byte and said:
                self.seconds.append(time.perf_counter() - start)
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
        if process.returncode or not said:
            lines = errors.decode(errors="replace").strip().splitlines()
            self.missing = (lines or [f"ended with status {process.returncode}"])[-1][:200]
        elif not self.first_byte:
            self.seconds.append(time.perf_counter() - start)

    def result(self) -> dict[str, Any]:
        """For the report."""
        if self.missing:
            return {"name": self.name, "missing": self.missing}
        return {"name": self.name, "seconds": median(self.seconds), "all_seconds": self.seconds}


def commands(model: Path | None) -> list[Command]:
    """The commands a user starts; the last one answers from the demo (or ``model``)."""
    qinfer = shutil.which("qinfer", path=str(Path(sys.executable).parent)) or shutil.which("qinfer")
    if not qinfer:
        return [Command(name="qinfer", words=[], missing="the qinfer command is not installed")]
    chosen = ["--model", str(model)] if model else []
    first_token = [qinfer, "run", *chosen, "--max-tokens", "2", "--temperature", "0", QUESTION]
    return [
        Command(name="qinfer --help", words=[qinfer, "--help"]),
        Command(name="qinfer --version", words=[qinfer, "--version"]),
        Command(name="qinfer list-plugins", words=[qinfer, "list-plugins"]),
        Command(name="qinfer run, first token", words=first_token, first_byte=True),
    ]


def measure_startup(model: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Medians over interleaved rounds; a first one, not counted, fills the system's file cache."""
    timed = commands(model)
    for turn in range(rounds + 1):
        for command in timed:
            command.run()
            if turn == 0:
                command.seconds.clear()
    return [command.result() for command in timed]
