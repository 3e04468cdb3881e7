"""Load plugins in processes of their own, so that nothing they do on import can hurt ours.

A subprocess prints a line of JSON for each of its plugins: an object with ``ok`` (it loads and
keeps the contract), ``summary``, ``api``, ``problems`` and ``remedy``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import Lock

from qinfer.core.child import python_command
from qinfer.core.errors import BrokenPlugin, Unsupported
from qinfer.core.registry.discovery import PluginRecord


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What loading a plugin showed. With ``ok``, ``problems`` are flaws it can be used with."""

    ok: bool
    summary: str = ""
    api: str = ""
    problems: tuple[str, ...] = ()
    remedy: str = ""


TOGETHER_SECONDS = 30.0
"""How long all plugins may take together, where they have no more trouble than to import Paddle."""


def check_all(records: Sequence[PluginRecord], timeout: float = 60.0) -> list[CheckResult]:
    """Check plugins; results in the order given. An interrupt ends the subprocesses.

    One subprocess loads them all. Those that do not load there, or that it did not come to because
    one before hung or ended it, are each loaded again by a subprocess of their own, a few at once.
    """
    running = _Running()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        try:
            loaded = pool.submit(_check_together, records, min(timeout, TOGETHER_SECONDS), running)
            results = loaded.result()
            failed = [record for record in records if record not in results]
            alone = pool.map(lambda record: _check_plugin(record, timeout, running), failed)
            results |= dict(zip(failed, alone, strict=True))
        except KeyboardInterrupt:
            running.end()
            raise
    return [results[record] for record in records]


class _Running:
    """The processes of checks under way. Once they were ended, one just begun is ended too."""

    def __init__(self) -> None:
        self._lock, self._ended = Lock(), False
        self._children: set[subprocess.Popen[str]] = set()

    def add(self, child: subprocess.Popen[str]) -> None:
        with self._lock:
            self._children.add(child)
            if self._ended:
                _kill(child)

    def remove(self, child: subprocess.Popen[str]) -> None:
        with self._lock:
            self._children.remove(child)

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for child in self._children:
                _kill(child)


def _check_together(
    records: Sequence[PluginRecord], timeout: float, running: _Running
) -> dict[PluginRecord, CheckResult]:
    """Of those that load in one process the results."""
    child = _load(records, running)
    output, _ = _ended(child, timeout, running) or ("", "")
    answers = map(_answer, output.splitlines())
    found = zip(records, answers, strict=False)
    return {record: answer for record, answer in found if answer is not None and answer.ok}


def _check_plugin(record: PluginRecord, timeout: float, running: _Running) -> CheckResult:
    """Check one plugin; ``timeout`` in seconds. Never raises for what the plugin does. Its process
    is one of ``running`` meanwhile.
    """
    child = _load([record], running)
    said = _ended(child, timeout, running)
    if said is None:
        return CheckResult(ok=False, problems=(f"still loading after {timeout:g} seconds",))
    output, noise = said
    if answer := _answer(output):
        return answer
    last = (noise.strip().splitlines() or ["it wrote nothing to stderr"])[-1][:200]
    return CheckResult(ok=False, problems=(f"{_ending(child.returncode)} on import: {last}",))


def _load(records: Sequence[PluginRecord], running: _Running) -> subprocess.Popen[str]:
    """Start a process that loads those, one after the other."""
    names = [name for record in records for name in (record.kind, record.dist, record.name)]
    child = subprocess.Popen(
        python_command("from qinfer.core.registry.check import main; main()", *names),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what the plugin starts can be ended with it
    )
    running.add(child)
    return child


def _ended(
    child: subprocess.Popen[str], timeout: float, running: _Running
) -> tuple[str, str] | None:
    """What it wrote on stdout and stderr; None if it had to be ended after ``timeout`` seconds."""
    try:
        return child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(child)
        return None
    finally:
        running.remove(child)


def _answer(line: str) -> CheckResult | None:
    try:
        answer = json.loads(line)
        return CheckResult(**{**answer, "problems": tuple(answer["problems"])})
    except (ValueError, TypeError, KeyError):
        return None


def _end(child: subprocess.Popen[str]) -> None:
    """Kill the child and whatever it started, without waiting for pipes others may hold."""
    _kill(child)
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe:
            pipe.close()


def _kill(child: subprocess.Popen[str]) -> None:
    if not hasattr(os, "killpg"):
        child.kill()
        return
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(child.pid, signal.SIGKILL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended the process with exit code {code}"
    try:
        return f"crashed with {signal.Signals(-code).name}"
    except ValueError:
        return f"crashed with signal {-code}"


def examine(kind: str, dist: str, name: str) -> CheckResult:
    """Load the plugin here and compare its info with its metadata."""
    from qinfer.core.hardware.start_paddle import prepare_paddle
    from qinfer.core.registry.selection import load_plugin, resolve

    with contextlib.suppress(Unsupported):  # a plugin that imports Paddle will say it better
        prepare_paddle()
    try:
        record = resolve(kind, f"{dist}:{name}")
        info = load_plugin(record).info
    except BrokenPlugin as error:
        why = error.message.removeprefix(f"{record.label} ")
        return CheckResult(ok=False, problems=(why,), remedy=error.remedy)
    problems = []
    if set(info.aliases) != set(record.aliases):
        said, listed = sorted(info.aliases), list(record.aliases)
        problems.append(f"aliases are {said} in its info but {listed} in its entry points")
    unread = set(record.reads) - {*info.model_types, *info.architectures}
    if kind == "model" and unread:  # what a scheme reads stands in its entry points alone
        problems.append(f"its entry points read {sorted(unread)}, its info does not")
    return CheckResult(ok=True, summary=info.summary, api=info.api, problems=tuple(problems))


def main() -> None:
    """In the subprocess: examine the plugins named in sys.argv, each by kind, distribution and
    name, and print a line of JSON for each as it is known.
    """
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # what a plugin prints on import must not mix with the answer
    names = iter(sys.argv[1:])
    with os.fdopen(answer_fd, "w", encoding="utf-8") as answers:
        for kind, dist, name in zip(names, names, names, strict=True):
            print(json.dumps(asdict(examine(kind, dist, name))), file=answers, flush=True)
    os._exit(0)  # threads and exit handlers a plugin left behind must not hold us up
