"""Building, loading and choosing the CPU versions of the operators: C++ kernels behind the
contracts of the table, which the modules ``native_*`` enter into it as they are imported.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from qinfer.core.errors import Unsupported, UsageError
from qinfer.cuda_ops import native_decoder, native_experts, native_linear  # noqa: F401
from qinfer.cuda_ops.build import TARGET, Build, build
from qinfer.cuda_ops.choose import candidates
from qinfer.cuda_ops.native_table import CPU
from qinfer.cuda_ops.record import Recorder, set_recorder
from qinfer.cuda_ops.table import REFERENCE, use

CHOICE = "QINFER_OPERATORS"
"""Environment variable: "reference" keeps the native operators out (to compare, to debug)."""

_loaded: set[Path] = set()


def use_native(*, require: bool, progress: Callable[[str], None]) -> str:
    """Switch the table to the native CPU operators, compiling them if none are there.

    Returns a line saying what is used. Without a compiler, or if it fails, that is the reference,
    and ``progress`` is told why; with ``require`` the reason is raised as Unsupported.
    Raises UsageError where the environment names other operators.
    """
    set_recorder(None)
    chosen = os.environ.get(CHOICE, "")
    if chosen not in ("", REFERENCE):
        raise UsageError(f"{CHOICE} is {chosen!r}", remedy=f"Set it to {REFERENCE}, or not at all.")
    if chosen and not require:
        use(REFERENCE)
        return f"operators: reference ({CHOICE} says so)"
    try:
        plan = _load_best(progress)
    except Unsupported as error:
        if require:
            raise
        use(REFERENCE)
        progress(f"Using the slow reference operators: {error.message.splitlines()[0]}")
        return "operators: reference"
    use(CPU)
    set_recorder(Recorder(plan.library))
    return f"operators: native, compiled for {plan.whom}"


def _load_best(progress: Callable[[str], None]) -> Build:
    """Load the first candidate that can be; those for a level may have been built elsewhere."""
    for plan in candidates(progress):
        try:
            load(build(plan, progress))
            return plan
        except Unsupported as error:
            if plan.level is None or os.environ.get(TARGET):
                raise
            progress(f"Passing over the operators for {plan.name}: {error.message.splitlines()[0]}")
    raise AssertionError("the last candidate is loaded or raises")


def load(library: Path) -> None:
    """Register a built library's operators with Paddle."""
    if library in _loaded:
        return
    from paddle.utils.cpp_extension.extension_utils import load_op_meta_info_and_register_op

    try:
        load_op_meta_info_and_register_op(str(library))
    except (OSError, RuntimeError) as error:  # a cache mounted noexec, another Paddle's symbols
        raise Unsupported(
            f"the native operators do not load: {error}",
            remedy="Set QINFER_CACHE to a folder programs may run from, or qinfer build-ops "
            "--force.",
        ) from error
    _loaded.add(library)


def lanes(library: Path) -> int:
    """Floats in a register of the processor a library was compiled for.

    So many outputs make a panel of a packed weight, and so many keys lie side by side in the cache.
    """
    return int(ctypes.CDLL(str(library)).qinfer_lanes())
