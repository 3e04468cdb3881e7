"""The accuracy table of the documentation: every scheme and method on the demo checkpoint.

    python -m benchmarks.accuracy            # writes docs/accuracy.md
    python -m benchmarks.accuracy --jobs 8   # on a machine with 16 cores
    python -m benchmarks.accuracy --model FOLDER --text FILE --output table.md --work FOLDER

Each quantised checkpoint is written into a folder and evaluated against the model itself. That
folder is a temporary one, or --work, which is kept: checkpoints and scores that it has are not made
again, and what is half done goes on. So with --work and --seconds the table can be made bit by bit;
it has the rows that are there, in the order below. With --jobs some rows are made side by side, by
processes that share the processor's cores; each computes the reference for itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy_table import REFERENCE, write_table
from qinfer.core.child import python_command
from qinfer.core.hardware.machine import usable_cores
from qinfer.core.measure.evaluate import evaluate
from qinfer.core.progress import NoProgress, TerminalProgress
from qinfer.core.types import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"

ON_THE_FLY = (
    "wint8",
    "wint4",
    "wint4-g128",
    "wint4-channel",
    "wint4-zp",
    "wint4-g128-zp",
    "wint4-channel-zp",
    "a8w8",
    "a8w8c8",
    "fp8",
)
CACHES = ("int8", "fp8")
CALIBRATED = (
    ("wint8", "--method gptq"),
    ("wint8", "--method gptq --kv-cache-dtype int8"),
    ("wint4", "--method mse"),
    ("wint4", "--method awq"),
    ("wint4", "--method gptq"),
    ("wint4", "--method awq+gptq"),
    ("wint4-zp", "--method awq+gptq"),
    ("wint4", "--method awq+gptq --group-size 32 --zero-points"),
    ("a8w8", "--method smoothquant"),
    ("a8w8", "--method smoothquant+gptq"),
    ("a8w8", "--method smoothquant+gptq --activations tensor"),
    ("a8w8", "--method smoothquant+gptq --format paddlenlp"),
    ("a8w8c8", "--method smoothquant+gptq"),
    ("fp8", "--method smoothquant"),
    ("fp8", "--method gptq"),
    ("fp8", "--method gptq --activations tensor"),
)

Run = tuple[str, RunConfig]


class TimeUpError(Exception):
    """There is no time for what comes next."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked for: the ``model``, the evaluation ``text``, the folder of what is made, when
    to stop (by ``time.time``), how many rows to make at once, and with how many threads each (0:
    as the machine has cores).
    """

    model: str
    text: Path | None
    folder: Path
    deadline: float
    jobs: int

    @property
    def threads(self) -> int:
        """Of each process."""
        return 0 if self.jobs == 1 else max(1, usable_cores() // self.jobs)

    @property
    def scores_file(self) -> Path:
        """A line for each row that is scored."""
        return self.folder / "scores.jsonl"

    def made(self, quant: str, how: str) -> Path:
        """The folder of a quantised checkpoint."""
        return self.folder / f"{quant} {how}".replace(" --", " ").replace(" ", "-")

    def scores(self) -> dict[str, Any]:
        """What is known so far, by label."""
        if not self.scores_file.exists():
            return {}
        lines = self.scores_file.read_text(encoding="utf-8").splitlines()
        return {score["label"]: score for score in map(json.loads, lines)}

    def run_config(self, model: str, quant: str, **more: Any) -> RunConfig:
        """A run over windows of the text, one at a time."""
        return RunConfig(
            model=model, quant=quant, max_model_len=512, max_num_seqs=1,
            threads=self.threads, **more,
        )  # fmt: skip


def main() -> None:
    """Quantise, evaluate and write the table; exit code 75 where time ran out before its end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="")
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--jobs", type=int, default=1, help="rows to make side by side")
    asked = parser.parse_args()
    if asked.jobs < 1:
        parser.error("--jobs has to be 1 or more")
    with tempfile.TemporaryDirectory(prefix="qinfer-accuracy-") as temporary:
        task = Task(
            model=asked.model,
            text=asked.text,
            folder=asked.work or Path(temporary),
            deadline=time.time() + asked.seconds,
            jobs=asked.jobs,
        )
        task.folder.mkdir(parents=True, exist_ok=True)
        code = _make(task)
        labels = [REFERENCE, *(label for label, _ in _runs(task))]
        write_table(asked.output, labels, task.scores())
    sys.exit(code)


def _make(task: Task) -> int:
    """All that is missing, or as much as there is time for; the exit code."""
    try:
        with ThreadPoolExecutor(task.jobs) as pool:
            list(pool.map(lambda made: _quantise(task, *made), CALIBRATED))
        known = task.scores()
        missing = [run for run in _runs(task) if run[0] not in known]
        if task.jobs == 1:
            _score(task, missing)
            return 0
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(task.jobs, mp_context=spawn) as processes:
            shares = [missing[first :: task.jobs] for first in range(task.jobs)]
            list(processes.map(_score, [task] * task.jobs, shares))
    except TimeUpError:
        print("time is up: the same command goes on from here", file=sys.stderr)
        return 75
    return 0


def _runs(task: Task) -> Iterator[Run]:
    """Every row, with what it takes to run it."""
    for name in ON_THE_FLY:
        yield f"{name} | on the fly", task.run_config(task.model, name)
    for kind in CACHES:
        run = task.run_config(task.model, "none", kv_cache_dtype=kind)
        yield f"none | `--kv-cache-dtype {kind}`", run
    for quant, how in CALIBRATED:
        yield f"{quant} | `{how}`", task.run_config(str(task.made(quant, how)), "auto")


def _quantise(task: Task, quant: str, how: str) -> None:
    """A checkpoint, unless it is there; what was begun before is continued."""
    output = task.made(quant, how)
    if output.exists():
        return
    arguments = ["quantize", "--quant", quant, *how.split(), "--output", str(output)]
    arguments += ["--threads", str(task.threads)] if task.threads else []
    arguments += ["--model", task.model] if task.model else []
    print(" ".join(arguments), file=sys.stderr, flush=True)
    call = "import sys; from qinfer.core.cli import main; main(sys.argv[1:])"
    left = task.deadline - time.time()
    try:
        subprocess.run(
            python_command(call, *arguments),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=None if left == float("inf") else max(left, 0),
        )
    except subprocess.TimeoutExpired:
        raise TimeUpError from None


def _score(task: Task, missing: Sequence[Run]) -> None:
    """Score some rows, each of which is noted as soon as it is known."""
    if not missing:
        return
    reference = task.run_config(task.model, "none")
    progress = TerminalProgress() if task.jobs == 1 else NoProgress()
    scores = evaluate(reference, missing, text=task.text, progress=progress)
    for done, score in enumerate(scores):
        label = REFERENCE if score.mean_kl is None else score.label
        line = json.dumps(asdict(score) | {"label": label}) + "\n"
        with task.scores_file.open("a", encoding="utf-8") as file:
            file.write(line)
        if time.time() > task.deadline and done < len(missing):
            raise TimeUpError


if __name__ == "__main__":
    main()
