"""Putting projections that a checkpoint quantised one by one into one fused linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qinfer.core.errors import Unsupported
from qinfer.core.stored import OF_THE_INPUT
from qinfer.core.types import Array, Scheme

Packed = tuple[Scheme, Mapping[str, Array]]


def join(parts: Sequence[Packed]) -> Packed:
    """One scheme and its arrays for projections of the same input, one below the other.

    Nothing is rounded anew: each row keeps its own scale. Projections that cannot be put together
    so (of different schemes, or with another scale of the input) stay apart: the scheme is then
    "mixed", with theirs in ``parts``, and the arrays of part i are called "i.NAME".
    """
    scheme, first = parts[0]
    if len(parts) == 1:
        return parts[0]
    if all(_fits(scheme, first, *other) for other in parts[1:]):
        joined: dict[str, Any] = {}
        for name, array in first.items():
            rows = [arrays[name] for _, arrays in parts]
            joined[name] = array if name in OF_THE_INPUT else np.concatenate(rows)
        return scheme, joined
    mixed = Scheme(name="mixed", weight_dtype="", parts=tuple(scheme for scheme, _ in parts))
    named = {
        f"{number}.{name}": array
        for number, (_, arrays) in enumerate(parts)
        for name, array in arrays.items()
    }
    return mixed, named


def rows(scheme: Scheme, packed: Mapping[str, Array], start: int, end: int) -> Mapping[str, Array]:
    """Outputs ``start`` to ``end`` of a weight. Raises Unsupported if that cuts through blocks."""
    step = scheme.group_size if scheme.weight_scale == "block" else 1
    if start % step or (end % step and end != len(packed["weight"])):
        raise Unsupported(
            f"rows {start} to {end} of a weight in blocks of {step} cannot be taken apart",
            remedy="Use an unquantised checkpoint of this model, with --quant.",
        )
    block = slice(start // step, -(-end // step))
    return {
        name: array
        if name in OF_THE_INPUT
        else array[block if name == "scale" and step > 1 else slice(start, end)]
        for name, array in packed.items()
    }


def _fits(
    scheme: Scheme, arrays: Mapping[str, Array], other: Scheme, others: Mapping[str, Array]
) -> bool:
    if scheme != other or arrays.keys() != others.keys():
        return False
    if scheme.weight_scale == "block" and len(arrays["weight"]) % scheme.group_size:
        return False  # its last block would reach into the next projection
    same_kind = all(arrays[name].dtype == others[name].dtype for name in arrays)
    return same_kind and all(
        np.array_equal(arrays[name], others[name]) for name in OF_THE_INPUT & arrays.keys()
    )
