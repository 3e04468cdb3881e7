"""Bounds on what a chat template may use up while it renders, and its bounded functions.

A step is charged for every loop turn and call; texts and lists are measured where they grow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from string import Formatter
from typing import Any

from jinja2 import TemplateError
from jinja2.filters import FILTERS
from jinja2.utils import Namespace

MAX_CHARS = 2**25  # twice what the tokenizer takes
MAX_STEPS = 5_000_000
MAX_ITEMS = 1_000_000
CALL_STEPS = 8
MAX_FORMAT = 10_000

# They build much from little, and no chat template needs them.
_LEFT_OUT = ("batch", "center", "format", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
_WIDE = re.compile(r"\*|\d{4}")


class TooMuch(TemplateError):
    """The template passed a bound."""


class Budget:
    """Steps and range() items a render has left. A step is about a microsecond."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.items = MAX_ITEMS

    def spend(self, steps: int, values: Iterable[Any] = ()) -> None:
        """Charge steps, and more for handling long texts."""
        self.steps -= steps + sum(len(value) >> 8 for value in values if isinstance(value, str))
        if self.steps < 0:
            raise TooMuch(f"it takes more than {MAX_STEPS:,} steps")


budget: ContextVar[Budget] = ContextVar("budget")


def check_size(size: int, limit: int = MAX_CHARS) -> None:
    """Refuse a text or list of that length."""
    if size > limit:
        raise TooMuch(f"a text or list is longer than {limit:,}")


def checked(value: Any) -> Any:
    """A result, if it isn't too long."""
    if isinstance(value, (str, list, tuple, dict)):
        check_size(len(value), MAX_CHARS if isinstance(value, str) else MAX_ITEMS)
    return value


def length(value: Any) -> int:
    """Length of a text or list; 1 for anything else."""
    return len(value) if isinstance(value, (str, list, tuple)) else 1


def check_numbers(values: Iterable[Any]) -> None:
    """Refuse integers whose arithmetic would be slow."""
    if any(isinstance(value, int) and abs(value) > 2**62 for value in values):
        raise TooMuch("a number is over 2**62")


def weight(value: Any) -> int:
    """Characters and items in a value, nested ones as often as they'd be written out.

    A few lists inside each other can be small in memory and endless as text.
    """
    chars, items, todo = 0, 0, [value]
    while todo:
        item = todo.pop()
        chars += len(item) if isinstance(item, str) else 1
        items += 1
        check_size(chars)
        check_size(items, MAX_ITEMS)
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, KeysView, ValuesView, ItemsView)):
            todo += item
        elif isinstance(item, Namespace):
            raise TooMuch("a namespace cannot be written out")
    return chars


def printable(value: Any) -> Any:
    """A value about to be written out (Jinja's "finalize")."""
    weight(value)
    return value


def check_multiplied(left: Any, right: Any) -> None:
    """Bound ``left * right``: numbers, or a text or list repeated."""
    check_numbers((left, right))
    for many, times in ((left, right), (right, left)):
        if isinstance(many, (str, list, tuple)) and isinstance(times, int):
            check_size(len(many) * times, MAX_CHARS if isinstance(many, str) else MAX_ITEMS)


def check_method(text: str, name: str, args: tuple[Any, ...]) -> None:
    """Bound the string methods that can multiply."""
    if name == "replace" and len(args) > 1 and isinstance(args[0], str):
        check_size(len(text) + text.count(args[0]) * length(args[1]))
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        check_size(len(text) * len(args[0]) + sum(map(length, args[0])))


def check_percent(template: str, values: Any) -> None:
    """Bound ``template % values``."""
    check_size(template.count("%") * weight(values))
    if len(template) > MAX_FORMAT or _WIDE.search(template):
        raise TooMuch("a % format is too long or has a very wide field")


def check_format(template: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Bound ``template.format(…)``: no format specifications, they can pad to any width."""
    check_size(template.count("{") * weight([*args, *kwargs.values()]))
    if len(template) > MAX_FORMAT or any(spec for _, _, spec, _ in Formatter().parse(template)):
        raise TooMuch("a str.format text is too long or has a format specification")


def concat(pieces: Iterable[str]) -> str:
    """Join the output of a template, block or macro, stopping when it gets too long."""
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        check_size(size)
        parts.append(piece)
    return "".join(parts)


def count(items: Iterable[Any]) -> Iterator[Any]:
    """What a loop runs over, each turn charged."""
    left = budget.get()
    for item in items:
        left.spend(1)
        yield item


def filters() -> dict[str, Callable[..., Any]]:
    """Jinja's filters, bounded."""
    growing = {"join": _join, "replace": _replace, "indent": _indent, "tojson": _tojson}
    allowed = {name: f for name, f in {**FILTERS, **growing}.items() if name not in _LEFT_OUT}
    return {name: _bounded(function) for name, function in allowed.items()}


def functions() -> dict[str, Callable[..., Any]]:
    """The global functions a template has, as transformers documents them."""
    return {"range": _range, "raise_exception": _raise_exception, "strftime_now": _strftime_now}


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # also copies the mark by which Jinja passes it a context
    def run(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        budget.get().spend(4, values)
        check_numbers(values)
        for value in values:
            weight(value)
        return checked(function(*args, **kwargs))

    return run


def _range(*bounds: int) -> range:
    numbers, left = range(*bounds), budget.get()
    check_numbers(bounds)
    left.items -= len(numbers)
    if left.items < 0:
        raise TooMuch(f"more than {MAX_ITEMS:,} items of range()")
    return numbers


def _join(items: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    values = items if attribute is None else [item[attribute] for item in items]
    texts = [str(printable(value)) for value in values]
    check_size(sum(map(len, texts)) + len(d) * len(texts))
    return d.join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    check_method(text, "replace", (old, new))
    return str(text.replace(old, new, count))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = len(text.splitlines()) + 1
    check_size(len(text) + lines * (len(width) if isinstance(width, str) else width))
    return str(FILTERS["indent"](text, width, first, blank))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: plain JSON, with neither Unicode nor HTML escaped."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=None if indent is None else min(indent, 16),
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 100 or re.search(r"%[^a-zA-Z]*\d", format):
        raise TooMuch("strftime_now takes a short format without widths")
    return datetime.now().strftime(format)
