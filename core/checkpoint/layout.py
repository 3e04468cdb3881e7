"""Matching weight rules to a checkpoint before anything is computed, in either framework's layout.

A linear layer's weight is [out, in] in Hugging Face checkpoints and [in, out] in Paddle's. Both
use the same file names, and some families the same tensor names too, so the shapes decide.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.rules import choose_rules, source_shapes
from qinfer.core.checkpoint.safetensors_file import shown
from qinfer.core.checkpoint.stored_view import QUANTISED
from qinfer.core.errors import BadCheckpoint
from qinfer.core.types import WeightRule

Layout = Literal["huggingface", "paddle"]
Shape = tuple[int, ...]

READABLE = ("BF16", "F16", "F32", "F64")
MAX_LINES = 40

PADDLE_NAME = re.compile(r"qwen\w*\.")


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The rule chosen for one target.

    ``transpose``: reverse the axes of each source as it is read. ``nbytes``: size of the sources
    on disk in bytes.
    """

    rule: WeightRule
    transpose: bool
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """How every target of the model is read from one checkpoint."""

    picks: Mapping[str, Pick]
    layout: Layout

    @property
    def total_bytes(self) -> int:
        """The bytes that loading will report as progress."""
        return sum(pick.nbytes for pick in self.picks.values())


def plan_loading(
    checkpoint: Checkpoint, rules: Iterable[WeightRule], unused: Iterable[str] = ()
) -> LoadPlan:
    """Choose a rule for every target and find out the layout, from headers alone.

    ``unused``: globs of further tensors that may be there. Quantised weights of a ``StoredView``
    are [out, in] in either layout.

    Raises BadCheckpoint listing every missing, surplus, mis-shaped and wrong-typed tensor, and
    BrokenPlugin for a rule that contradicts itself.
    """
    rules = [*rules, *(WeightRule(target="", source=(glob,), op="skip") for glob in unused)]
    names = checkpoint.names()
    found, incomplete = choose_rules(rules, frozenset(names))
    fixed = _never_flipped(found.values())
    layout = _detect_layout(checkpoint, found.values(), fixed)
    problems = [
        *_missing(incomplete.values(), names),
        *_surplus(names, rules, found.values(), incomplete.values()),
        *_unreadable(checkpoint, found.values()),
        *_misshaped(checkpoint, found.values(), fixed, layout),
    ]
    if problems:
        raise _refusal(checkpoint, problems)
    picks = {
        target: Pick(
            rule=rule,
            transpose=rule.op == "transpose" or _is_flipped(rule, fixed, layout),
            nbytes=sum(checkpoint.nbytes(name) for name in rule.source),
        )
        for target, rule in found.items()
    }
    return LoadPlan(picks=picks, layout=layout)


def _never_flipped(rules: Iterable[WeightRule]) -> frozenset[str]:
    """Tensors in the same order in both layouts: embeddings, also where tied to a linear."""
    return frozenset(name for rule in rules if not rule.linear for name in rule.source)


def _is_flipped(rule: WeightRule, fixed: frozenset[str], layout: Layout) -> bool:
    """Whether the sources lie [in, out]. A rule that itself says "transpose" means what it says."""
    free = rule.linear and rule.op != "transpose" and fixed.isdisjoint(rule.source)
    return bool(free and layout == "paddle")


def _detect_layout(
    checkpoint: Checkpoint, rules: Iterable[WeightRule], fixed: frozenset[str]
) -> Layout:
    """Count the linear weights that fit one layout only; where all are square, names decide."""
    votes = 0
    for rule in rules:
        if not _is_flipped(rule, fixed, "paddle"):
            continue
        for name, shape in zip(rule.source, source_shapes(rule), strict=True):
            if checkpoint.dtype(name) == QUANTISED:
                continue
            there = checkpoint.shape(name)
            votes += (there == shape) - (there == shape[::-1])
    if votes:
        return "huggingface" if votes > 0 else "paddle"
    paddle = any(PADDLE_NAME.match(name) for name in checkpoint.names())
    return "paddle" if paddle else "huggingface"


def _missing(rules: Iterable[WeightRule], names: Collection[str]) -> list[str]:
    return [
        f"missing      {name}: expected {list(shape)}"
        for rule in rules
        for name, shape in zip(rule.source, source_shapes(rule), strict=True)
        if name not in names
    ]


def _surplus(
    names: Iterable[str],
    rules: Iterable[WeightRule],
    found: Iterable[WeightRule],
    incomplete: Iterable[WeightRule],
) -> list[str]:
    used = {name for rule in (*found, *incomplete) for name in rule.source}
    skips = [glob for rule in rules if rule.op == "skip" for glob in rule.source]
    return [
        f"surplus      {shown(name)}: this model has no such tensor"
        for name in names
        if name not in used and not any(fnmatchcase(name, glob) for glob in skips)
    ]


def _unreadable(checkpoint: Checkpoint, rules: Iterable[WeightRule]) -> list[str]:
    sources = dict.fromkeys(name for rule in rules for name in rule.source)
    expected = ", ".join(READABLE)
    return [
        f"wrong dtype  {shown(name)}: found {checkpoint.dtype(name)}, expected one of {expected}"
        for name in sources
        if checkpoint.dtype(name) not in (*READABLE, QUANTISED)
    ]


def _misshaped(
    checkpoint: Checkpoint, rules: Iterable[WeightRule], fixed: frozenset[str], layout: Layout
) -> list[str]:
    lines: dict[str, None] = {}  # several targets may read the same tensor
    for rule in rules:
        for name, shape in zip(rule.source, source_shapes(rule), strict=True):
            flipped = _is_flipped(rule, fixed, layout) and checkpoint.dtype(name) != QUANTISED
            expected = shape[::-1] if flipped else shape
            if checkpoint.shape(name) != expected:
                lines[_shape_line(name, checkpoint.shape(name), expected)] = None
    return list(lines)


def _shape_line(name: str, found: Shape, expected: Shape) -> str:
    line = f"wrong shape  {shown(name)}: found {list(found)}, expected {list(expected)}"
    if found == expected[::-1]:
        line += " (transposed, unlike the others)"
    return line


def _refusal(checkpoint: Checkpoint, problems: Sequence[str]) -> BadCheckpoint:
    lines = [f"  {problem}" for problem in problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"  and {len(problems) - MAX_LINES} more")
    return BadCheckpoint(
        f"the tensors in {checkpoint.folder} do not fit its config.json "
        f"({len(problems)} problems):\n" + "\n".join(lines),
        remedy="Download the checkpoint again, or correct config.json if it belongs to "
        "another model.",
    )
