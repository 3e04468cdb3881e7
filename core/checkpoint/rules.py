"""Which tensors a weight rule reads, in which shapes; and choosing among alternative rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from math import prod

from qinfer.core.errors import BrokenPlugin
from qinfer.core.types import WeightRule


def source_shapes(rule: WeightRule) -> list[tuple[int, ...]]:
    """The shape each source has in Hugging Face's layout. The rule must be well-formed."""
    if rule.op == "fuse":
        return [(rows, *rule.shape[1:]) for rows in rule.sizes]
    if rule.op == "split":
        return [(rule.sizes[0], *rule.shape[1:])]
    return [rule.shape[::-1] if rule.op == "transpose" else rule.shape]


def check_rule(rule: WeightRule) -> None:
    """Raise BrokenPlugin if the rule contradicts itself: that is the model plugin's mistake."""
    problem = _problem(rule)
    if problem:
        raise BrokenPlugin(
            f"the model plugin's weight rule for {rule.target or rule.source!r} {problem}.",
            remedy="This is a mistake in the plugin: report it to its authors.",
        )


def _problem(rule: WeightRule) -> str:
    if rule.op == "skip":
        return "" if rule.source else "skips nothing"
    if not rule.target or not rule.source:
        return "lacks its target or its source"
    if any(size < 1 for size in (*rule.shape, *rule.sizes)):
        return f"has shape {rule.shape} and sizes {rule.sizes}, which must be at least 1"
    if rule.linear and len(rule.shape) != 2:
        return f"is marked linear, but its shape {rule.shape} has not two axes"
    return _fuse_problem(rule) if rule.op == "fuse" else _single_problem(rule)


def _fuse_problem(rule: WeightRule) -> str:
    adds_up = rule.shape and sum(rule.sizes) == rule.shape[0]
    if adds_up and len(rule.sizes) == len(rule.source):
        return ""
    return f"fuses {len(rule.source)} sources with {rule.sizes} rows into {rule.shape}"


def _single_problem(rule: WeightRule) -> str:
    if len(rule.source) != 1:
        return f"has {len(rule.source)} sources where {rule.op} takes one"
    if rule.op != "split":
        return ""
    end = rule.start + rule.shape[0] if rule.shape else 0
    fits = len(rule.sizes) == 1 and 0 <= rule.start < end <= rule.sizes[0]
    return "" if fits else f"takes rows {rule.start} to {end} of {rule.sizes}"


def choose_rules(
    rules: Iterable[WeightRule], names: Collection[str]
) -> tuple[dict[str, WeightRule], dict[str, WeightRule]]:
    """For every target the first rule whose sources are all among ``names``.

    Returns (found, incomplete), both target -> rule. Of an incomplete target it is the
    alternative that comes nearest: most sources there, then the naming used elsewhere.
    """
    by_target: dict[str, list[WeightRule]] = {}
    for rule in rules:
        check_rule(rule)
        if rule.op != "skip":
            by_target.setdefault(rule.target, []).append(rule)
    found: dict[str, WeightRule] = {}
    usual: Counter[int] = Counter()
    for target, choices in by_target.items():
        for place, rule in enumerate(choices):
            if all(name in names for name in rule.source):
                found[target] = rule
                usual[place] += len(choices) > 1
                break
    incomplete = {
        target: _nearest(choices, names, usual)
        for target, choices in by_target.items()
        if target not in found
    }
    return found, incomplete


def _nearest(
    choices: Sequence[WeightRule], names: Collection[str], usual: Counter[int]
) -> WeightRule:
    def nearness(place: int) -> tuple[int, int, int]:
        present = sum(name in names for name in choices[place].source)
        return present, usual[place], -place

    return choices[max(range(len(choices)), key=nearness)]


def num_parameters(rules: Iterable[WeightRule]) -> int:
    """How many numbers the targets hold, those that read the same tensors counted once."""
    counted: dict[tuple[tuple[str, ...], int], int] = {}
    for rule in rules:
        counted[(rule.source, rule.start)] = prod(rule.shape)
    return sum(counted.values())
