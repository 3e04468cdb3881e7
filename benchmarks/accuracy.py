"""The accuracy table of the documentation: every scheme and method on the demo checkpoint.

    python -m benchmarks.accuracy            # writes docs/accuracy.md
    python -m benchmarks.accuracy --model FOLDER --text FILE --output table.md --work FOLDER

Each quantised checkpoint is written into a folder and evaluated against the model itself. That
folder is a temporary one, or --work, which is kept: checkpoints and scores that it has are not made
again, and what is half done goes on. So with --work and --seconds the table can be made bit by bit;
it has the rows that are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qinfer.core.child import python_command
from qinfer.core.measure.evaluate import evaluate
from qinfer.core.progress import TerminalProgress
from qinfer.core.types import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
MARK = "<!-- made by python -m benchmarks.accuracy -->"

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
COLUMNS = "| scheme | how | perplexity | change | mean KL | top-1 agreement |\n"
REFERENCE = "none | the reference"

Run = tuple[str, RunConfig]


class TimeUpError(Exception):
    """There is no time for what comes next."""


def main() -> None:
    """Quantise, evaluate and write the table; exit code 75 where time ran out before its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    asked = parser.parse_args()
    deadline = time.monotonic() + asked.seconds
    with tempfile.TemporaryDirectory(prefix="qinfer-accuracy-") as temporary:
        folder = asked.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs, path, code = list(_runs(asked.model, folder)), folder / "scores.json", 0
        try:
            for quant, how in CALIBRATED:
                _quantise(asked.model, quant, how, folder, deadline)
            _score(asked.model, asked.text, runs, path, deadline)
        except TimeUpError:
            print("time is up: the same command goes on from here", file=sys.stderr)
            code = 75
        scores = _read(path)
    labels = [label for label in (REFERENCE, *(label for label, _ in runs)) if label in scores]
    rows = "".join(_row(label, scores) for label in labels)
    _write(asked.output, COLUMNS + "| --- | --- | --- | --- | --- | --- |\n" + rows)
    sys.exit(code)


def _runs(model: str, folder: Path) -> Iterator[Run]:
    """Every row, with what it takes to run it."""
    base = {"max_model_len": 512, "max_num_seqs": 1}
    for name in ON_THE_FLY:
        yield f"{name} | on the fly", RunConfig(model=model, quant=name, **base)
    for kind in CACHES:
        run = RunConfig(model=model, quant="none", kv_cache_dtype=kind, **base)
        yield f"none | `--kv-cache-dtype {kind}`", run
    for quant, how in CALIBRATED:
        made = str(_output(folder, quant, how))
        yield f"{quant} | `{how}`", RunConfig(model=made, quant="auto", **base)


def _output(folder: Path, quant: str, how: str) -> Path:
    return folder / f"{quant} {how}".replace(" --", " ").replace(" ", "-")


def _quantise(model: str, quant: str, how: str, folder: Path, deadline: float) -> None:
    """A checkpoint, unless it is there; what was begun before is continued."""
    output = _output(folder, quant, how)
    if output.exists():
        return
    arguments = ["quantize", "--quant", quant, *how.split(), "--output", str(output)]
    arguments += ["--model", model] if model else []
    print(" ".join(arguments), file=sys.stderr, flush=True)
    call = "import sys; from qinfer.core.cli import main; main(sys.argv[1:])"
    left = deadline - time.monotonic()
    try:
        subprocess.run(
            python_command(call, *arguments),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=None if left == float("inf") else max(left, 0),
        )
    except subprocess.TimeoutExpired:
        raise TimeUpError from None


def _score(model: str, text: Path | None, runs: Sequence[Run], path: Path, deadline: float) -> None:
    """Score the rows that a file of them by label lacks; each is in it as soon as it is known."""
    scores = _read(path)
    missing = [(label, run) for label, run in runs if label not in scores]
    if missing:
        reference = RunConfig(model=model, quant="none", max_model_len=512, max_num_seqs=1)
        for score in evaluate(reference, missing, text=text, progress=TerminalProgress()):
            label = REFERENCE if score.mean_kl is None else score.label
            scores[label] = asdict(score)
            path.write_text(json.dumps(scores, indent=1))
            if time.monotonic() > deadline and len(scores) <= len(runs):
                raise TimeUpError


def _read(path: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return scores


def _row(label: str, scores: dict[str, Any]) -> str:
    own, first = scores[label], scores[REFERENCE]["perplexity"]
    if label == REFERENCE:
        return f"| {label} | {first:.3f} | | | |\n"
    return (
        f"| {label} | {own['perplexity']:.3f} | {own['perplexity'] / first - 1:+.2%} "
        f"| {own['mean_kl']:.4f} | {own['top1_agreement']:.1%} |\n"
    )


def _write(output: Path, table: str) -> None:
    """Into the page, in place of the table that it has, or as a file of its own."""
    print(table)
    if not output.exists():
        output.write_text(table, encoding="utf-8")
        return
    begin, _, rest = output.read_text(encoding="utf-8").partition(MARK)
    after = rest.partition("\n\n")[2].partition("\n\n")[2]
    output.write_text(f"{begin}{MARK}\n\n{table}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
