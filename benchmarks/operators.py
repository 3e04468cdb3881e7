"""Where a prompt's time and a decoded token's go, by operator: python -m benchmarks.operators

Operators that run at once are timed as they are called, recorded ones as they are replayed.
"elsewhere" is the rest: the engine, Python and Paddle between the operators. Medians; the machine
should do nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qinfer import LLM, SamplingParams
from qinfer.cuda_ops.record import Recorder, Recording, recorder
from qinfer.cuda_ops.table import TABLE

Spent = list[tuple[str, float]]
"""What was computed, and for how many seconds; in order."""


class Watch:
    """Stands between the operators and their callers, and times replays entry by entry.

    ``spent`` grows by what is computed; an operator's own time, without those it calls.
    """

    def __init__(self, used: Recorder) -> None:
        self.spent: Spent = []
        self._inner = [0.0]
        self._handle: int | None = None
        self._is_deferred = False
        self._entries: list[str] = []
        self._recorder, self._begin, self._end = used, used.begin, used.end
        for entry in TABLE.values():
            entry.run = self._watched(entry.name, entry.run)
        vars(used).update(begin=self._begun, end=self._ended)
        for name in ("replay", "replay_in_parts"):
            setattr(Recording, name, lambda recording, *_: self._replayed(recording))

    def _watched(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            result = run(*args, **kwargs)
            taken = time.perf_counter() - begin
            own = taken - self._inner.pop()
            self._inner[-1] += taken
            is_product = name.startswith("linear")
            what = f"{name} {args[0].shape[1]} > {result.shape[1]}" if is_product else name
            if not self._is_deferred:
                self.spent.append((what, own))
            if self._handle is not None:
                self._entries += [what] * (self._recorder.size(self._handle) - len(self._entries))
            return result

        return call

    def _begun(self, is_deferred: bool) -> int:
        handle: int = self._begin(is_deferred)
        self._handle, self._is_deferred, self._entries = handle, is_deferred, []
        return handle

    def _ended(self) -> None:
        self._handle, self._is_deferred = None, False
        self._end()

    def _replayed(self, recording: Recording[Any]) -> Any:
        self.spent += zip(self._entries, recording.seconds().tolist(), strict=True)
        return recording.result


def main() -> None:
    """Measure each scheme and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__)
    add = parser.add_argument
    add("--model", help="a checkpoint folder; without it the demo's")
    add("--schemes", nargs="*", default=["none", "wint8", "wint4", "fp8", "a8w8"])
    add("--threads", type=int, default=2)
    add("--prompt-tokens", type=int, default=128)
    add("--streams", type=int, default=1, help="sequences at once")
    add("--steps", type=int, default=40, help="tokens decoded")
    add("--prompts", type=int, default=9)
    options = parser.parse_args()
    for scheme in options.schemes:
        with LLM(options.model, quant=scheme, threads=options.threads) as llm:
            used = recorder()
            if used is None:
                parser.error("there are no native operators here: see qinfer doctor")
            measure(llm, Watch(used), scheme, options)


def measure(llm: LLM, watch: Watch, scheme: str, options: argparse.Namespace) -> None:
    """Run prompts, and decode after each; the last decodes longest."""
    prompts, steps = [], []
    for turn in range(options.prompts + 1):
        is_last = turn == options.prompts
        params = SamplingParams(
            temperature=0, max_tokens=options.steps if is_last else 1, ignore_eos=True
        )
        for _ in range(options.streams):
            ids = np.random.default_rng().integers(100, 1000, options.prompt_tokens)
            llm.engine.add(ids.tolist(), params)
        prompts.append(timed_step(llm, watch))
        while llm.engine.has_work:
            steps.append(timed_step(llm, watch))
    size = f"{options.streams} of {options.prompt_tokens} tokens"
    show(f"{scheme}: prompts, {size}", prompts[1:])
    show(f"{scheme}: a step of {size} and more", steps[4:])  # recorded and checked by then


def timed_step(llm: LLM, watch: Watch) -> tuple[float, Spent]:
    """The seconds of one step of the engine, and what was computed."""
    watch.spent = []
    begin = time.perf_counter()
    llm.engine.step()
    return time.perf_counter() - begin, watch.spent


def show(title: str, runs: list[tuple[float, Spent]]) -> None:
    """Medians over the runs, all of which compute the same."""
    names = list(dict.fromkeys(name for name, _ in runs[0][1]))
    table = Table("", "times", "ms", "µs each", title=title)
    rest = median(whole - sum(s for _, s in spent) for whole, spent in runs)
    for name in names:
        count = sum(one == name for one, _ in runs[0][1])
        seconds = median(sum(s for one, s in spent if one == name) for _, spent in runs)
        table.add_row(name, str(count), f"{seconds * 1e3:.2f}", f"{seconds / count * 1e6:.1f}")
    table.add_row("elsewhere", "", f"{rest * 1e3:.2f}", "")
    table.add_row("all", "", f"{median(whole for whole, _ in runs) * 1e3:.2f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
