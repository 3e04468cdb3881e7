"""The table of docs/accuracy.md, and what was aimed at beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- made by python -m benchmarks.accuracy -->"
END = "<!-- until here -->"

REFERENCE = "none | the reference"
COLUMNS = (
    "| scheme | how | perplexity | change | mean KL | top-1 agreement |\n"
    "| --- | --- | --- | --- | --- | --- |\n"
)

TARGETS = (
    (0.01, "wint8 | on the fly"),
    (0.01, "a8w8 | `--method smoothquant`"),
    (0.01, "a8w8 | `--method smoothquant+gptq`"),
    (0.01, "fp8 | `--method gptq`"),
    (0.06, "wint4 | `--method awq+gptq`"),
    (0.06, "wint4-zp | `--method awq+gptq`"),
    (0.06, "wint4 | `--method awq+gptq --group-size 32 --zero-points`"),
    (0.005, "none | `--kv-cache-dtype int8`"),
    (0.007, "none | `--kv-cache-dtype fp8`"),
    (0.01, "a8w8c8 | `--method smoothquant+gptq`"),
    (0.01, "wint8 | `--method gptq --kv-cache-dtype int8`"),
)
"""The largest change of perplexity that was aimed at, and a row that may meet it."""


def write_table(output: Path, labels: Sequence[str], scores: Mapping[str, Any]) -> None:
    """Write the rows that have scores into the page, in place of its own, or into a new file."""
    table = COLUMNS + "".join(_row(label, scores) for label in labels if label in scores)
    met = "".join(_target(most, label, scores) for most, label in TARGETS if label in scores)
    if met:
        table += "\n| aimed at | scheme | how | measured | |\n| --- | --- | --- | --- | --- |\n"
        table += met
    print(table)
    begin, rest = "", "\n"
    if output.exists():
        begin, _, after = output.read_text(encoding="utf-8").partition(BEGIN)
        rest = after.partition(END)[2]
    output.write_text(f"{begin}{BEGIN}\n\n{table}\n{END}{rest}", encoding="utf-8")


def _change(label: str, scores: Mapping[str, Any]) -> float:
    change: float = scores[label]["perplexity"] / scores[REFERENCE]["perplexity"] - 1
    return change


def _row(label: str, scores: Mapping[str, Any]) -> str:
    own = scores[label]
    if label == REFERENCE:
        return f"| {label} | {own['perplexity']:.3f} | | | |\n"
    return (
        f"| {label} | {own['perplexity']:.3f} | {_change(label, scores):+.2%} "
        f"| {own['mean_kl']:.4f} | {own['top1_agreement']:.1%} |\n"
    )


def _target(most: float, label: str, scores: Mapping[str, Any]) -> str:
    change = _change(label, scores)
    return f"| {most:.1%} | {label} | {change:+.2%} | {'met' if change <= most else 'not met'} |\n"
