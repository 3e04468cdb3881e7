"""The vocabulary's frozen classes as JSON and back, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """What ``json`` can write for a dataclass, and for what the vocabulary's fields hold."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.name, "values": value.tolist()}
    return value


def from_json(kind: type[T], value: Any, where: str) -> T:
    """The ``kind`` that ``value``, as ``to_json`` makes it, stands for.

    A field that is missing takes its default. Raises ValueError naming the place, "WHERE.field",
    of whatever is missing, unknown or of another type.
    """
    return cast(T, _read(kind, value, where))


def _read(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _object(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (other,) = (one for one in inner if one is not NoneType)
        return None if value is None and NoneType in inner else _read(other, value, where)
    if origin is not None:
        return _container(origin, inner, value, where)
    return _array(value, where) if kind is Any else _scalar(kind, value, where)


def _container(origin: Any, inner: tuple[Any, ...], value: Any, where: str) -> Any:
    """A Literal, a tuple or frozenset of one kind, or a Mapping from text."""
    if origin is Literal:
        return _same(value, value in inner, where, f"one of {', '.join(map(str, inner))}")
    if origin in (tuple, frozenset):
        items = _same(value, isinstance(value, list), where, "a list")
        return origin(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    items = _same(value, isinstance(value, dict), where, "an object")
    return {key: _read(inner[1], item, f"{where}.{key}") for key, item in items.items()}


_types = cache(get_type_hints)
"""Of a class; they are texts that have to be evaluated, and a manifest has hundreds of objects."""


def _object(kind: Any, value: Any, where: str) -> Any:
    raw = _same(value, isinstance(value, dict), where, "an object")
    types, known = _types(kind), {field.name: field for field in fields(kind)}
    if unknown := sorted(raw.keys() - known.keys()):
        raise ValueError(f"{where} has the unknown {unknown[0]!r:.80}")
    for name, field in known.items():
        if name not in raw and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}.{name} is missing")
    return kind(**{n: _read(types[n], item, f"{where}.{n}") for n, item in raw.items()})


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_same(value, is_number and math.isfinite(value), where, "a number"))
    names = {int: "a whole number", str: "text", bool: "true or false"}
    return _same(value, type(value) is kind, where, names[kind])


def _array(value: Any, where: str) -> Any:
    """An array of the vocabulary, all of which hold float32."""
    is_array = isinstance(value, dict) and value.get("dtype") == "float32"
    raw = _same(value, is_array, where, "an array of float32")
    try:
        return np.array(raw["values"], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is no array: {error}") from None


def _same(value: Any, is_right: bool, where: str, what: str) -> Any:
    if not is_right:
        raise ValueError(f"{where} is {value!r:.80}, not {what}")
    return value
