"""The accuracy table of the documentation: every scheme and method on the demo checkpoint.

    python -m benchmarks.accuracy            # writes docs/accuracy.md
    python -m benchmarks.accuracy --model FOLDER --text FILE --output table.md --work FOLDER

Each quantised checkpoint is written into a folder and evaluated against the model itself. That
folder is a temporary one, or --work, which is kept; what it has already is not made again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qinfer.core.child import python_command
from qinfer.core.evaluate import Scores, evaluate
from qinfer.core.progress import TerminalProgress
from qinfer.core.types import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
MARK = "<!-- made by python -m benchmarks.accuracy -->"

ON_THE_FLY = ("wint8", "wint4", "a8w8", "fp8")
CALIBRATED = (
    ("wint8", "--method gptq"),
    ("wint8", "--method gptq --kv-cache-dtype int8"),
    ("wint4", "--method mse"),
    ("wint4", "--method awq"),
    ("wint4", "--method gptq"),
    ("wint4", "--method awq+gptq"),
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


def main() -> None:
    """Quantise, evaluate and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--work", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qinfer-accuracy-") as folder:
        rows = list(_rows(asked.model, asked.text, asked.work or Path(folder)))
    table = COLUMNS + "| --- | --- | --- | --- | --- | --- |\n" + "".join(rows)
    print(table)
    if asked.output.exists():
        begin, _, rest = asked.output.read_text(encoding="utf-8").partition(MARK)
        after = rest.partition("\n\n")[2].partition("\n\n")[2]
        asked.output.write_text(f"{begin}{MARK}\n\n{table}\n{after}", encoding="utf-8")
    else:
        asked.output.write_text(table, encoding="utf-8")


def _rows(model: str, text: Path | None, folder: Path) -> Iterator[str]:
    base = {"max_model_len": 512, "max_num_seqs": 1}
    runs = [
        (f"{name} | on the fly", RunConfig(model=model, quant=name, **base)) for name in ON_THE_FLY
    ]
    for quant, how in CALIBRATED:
        output = folder / f"{quant} {how}".replace(" --", " ").replace(" ", "-")
        if not output.exists():
            _quantise(model, quant, how, output)
        runs.append((f"{quant} | `{how}`", RunConfig(model=str(output), quant="auto", **base)))
    for kind in ("int8", "fp8"):
        run = RunConfig(model=model, quant="none", kv_cache_dtype=kind, **base)
        runs.append((f"none | `--kv-cache-dtype {kind}`", run))
    runs.append(("a8w8c8 | on the fly", RunConfig(model=model, quant="a8w8c8", **base)))
    reference = RunConfig(model=model, quant="none", **base)
    results = evaluate(reference, runs, text=text, progress=TerminalProgress())
    first = next(results)
    yield f"| none | the reference | {first.perplexity:.3f} | | | |\n"
    yield from (_row(score, first) for score in results)


def _quantise(model: str, quant: str, how: str, output: Path) -> None:
    arguments = ["quantize", "--quant", quant, *how.split(), "--output", str(output)]
    arguments += ["--model", model] if model else []
    print(" ".join(arguments), file=sys.stderr, flush=True)
    call = "import sys; from qinfer.core.cli import main; main(sys.argv[1:])"
    subprocess.run(python_command(call, *arguments), check=True, stdout=subprocess.DEVNULL)


def _row(score: Scores, first: Scores) -> str:
    change = score.perplexity / first.perplexity - 1
    return (
        f"| {score.label} | {score.perplexity:.3f} | {change:+.2%} | {score.mean_kl:.4f} "
        f"| {score.top1_agreement:.1%} |\n"
    )


if __name__ == "__main__":
    main()
