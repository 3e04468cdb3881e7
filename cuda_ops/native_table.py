"""How the native CPU operators are entered into the table, and called."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import paddle

from qinfer.cuda_ops.table import Operator

P = ParamSpec("P")
R = TypeVar("R")

CPU = "cpu"
"""This version's name in the table."""

FORMATS = {"float32": 0, "float16": 0, "bfloat16": 1, "int8": 2, "float8_e4m3fn": 3, "int4": 4}
"""Weight dtype -> number of the packed format, as csrc/cpu/linear.h counts them. A float16 weight
is held as float32, which is exact."""

run = paddle._C_ops._run_custom_op
"""``run(name, *inputs and attributes)`` -> list of results; the library has to be loaded before."""


def native(entry: Operator[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Enter a function into the table as the CPU version of ``entry``."""

    def enter(version: Callable[P, R]) -> Callable[P, R]:
        entry.versions[CPU] = version
        return version

    return enter
