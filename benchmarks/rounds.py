"""Interleaved rounds over all programs: A B C, A B C, … so that a busy moment hits them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.child import Child, ChildError
from benchmarks.programs import Program
from qinfer.plugins.backends.bandwidth import ReadBandwidth

REST_SECONDS = 0.3
"""Lets the worker threads of the program before stop spinning."""

Note = Callable[[str], None]
"""Told what is being done."""


class Entrant:
    """A program with its process and what was measured of it. Once it fails, it is out."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.missing = program.missing
        self.child: Child | None = None
        self.facts: dict[str, Any] = {}
        self.runs: list[dict[str, Any]] = []

    def start(self) -> None:
        """Load the model."""
        if self.missing:
            return
        try:
            self.child = Child(list(self.program.command))
        except (ChildError, OSError) as error:
            self.missing = str(error)
        else:
            self.facts = {k: v for k, v in self.child.ready.items() if k != "event"}

    def run(self, prompts: Sequence[dict[str, Any]], new_tokens: int) -> None:
        """Run one request, or several at once."""
        if self.child:
            try:
                self.runs.append(self.child.order(requests=prompts, new_tokens=new_tokens))
            except ChildError as error:
                self.missing, self.child = str(error), None

    def stop(self) -> None:
        """End the process and learn its peak memory."""
        if self.child:
            try:
                self.facts["peak_memory_bytes"] = self.child.quit()["peak_memory_bytes"]
            except ChildError as error:
                self.missing = str(error)

    def result(self, streams: int, prompt_tokens: int, speeds: Sequence[float]) -> dict[str, Any]:
        """Medians of all runs but the first; the tokens of all streams count together.

        A run's floor is the time to read the weights at the bandwidth measured in the same
        round: on a shared host it changes from minute to minute. One reading serves a token of
        every stream.
        """
        name, runs = self.program.name, self.runs[1:]
        if self.missing or not runs:
            return {"name": name, "missing": self.missing or "no run was counted"}
        first = median(run["first_token_seconds"] for run in runs)
        tokens = [run["decode_seconds"] / run["decode_tokens"] for run in runs]
        floors = [self.program.bytes_per_token / speed / streams for speed in speeds[1:]]
        output = median(run["total_tokens"] / run["total_seconds"] for run in runs)
        return self.facts | {
            "name": name,
            "first_token_seconds": first,
            "output_tokens_per_second": output,
            "prefill_tokens_per_second": streams * prompt_tokens / first,
            "decode_tokens_per_second": 1 / median(tokens),
            "bytes_per_token": self.program.bytes_per_token,
            "share_of_floor": median(f / t for f, t in zip(floors, tokens, strict=True)),
            "text": runs[0]["text"],
            "runs": runs,
        }


def measure_programs(
    programs: Sequence[Program],
    rounds: Sequence[Sequence[dict[str, Any]]],
    new_tokens: int,
    bandwidth: ReadBandwidth,
    note: Note,
) -> tuple[list[dict[str, Any]], list[float]]:
    """Results in the order of ``programs``, and each round's read bandwidth in bytes per second.

    ``rounds`` has the prompts of each, which are given at once. The first round warms up and is
    not counted.
    """
    entrants = [Entrant(program) for program in programs]
    speeds = []
    try:
        for entrant in entrants:
            note(f"loading {entrant.program.name}")
            entrant.start()
        for turn, prompts in enumerate(rounds):
            note(f"round {turn} of {len(rounds) - 1}")
            speeds.append(bandwidth.measure())
            for entrant in entrants:
                time.sleep(REST_SECONDS)
                entrant.run(prompts, new_tokens)
        for entrant in entrants:
            entrant.stop()
    finally:
        for entrant in entrants:
            if entrant.child:
                entrant.child.kill()
    sizes = len(rounds[0]), len(rounds[0][0]["prompt"])
    return [entrant.result(*sizes, speeds) for entrant in entrants], speeds
