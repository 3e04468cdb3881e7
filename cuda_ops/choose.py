"""Which library of native operators a run takes, where several are built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from qinfer.core.errors import Unsupported
from qinfer.core.types import OperatorBuild
from qinfer.cuda_ops.build import TARGET, Build, build, plan_build, plan_level
from qinfer.cuda_ops.levels import LEVELS

Progress = Callable[[str], None]


def candidates(progress: Progress) -> Iterator[Build]:
    """What a run tries, one after the other: what TARGET says or what is built for this processor,
    and nothing else; or what is built for a level it has, the best first, and last what would be
    compiled. ``progress`` is told of damaged ones. Raises Unsupported where none is left.
    """
    if os.environ.get(TARGET, "").strip():
        yield plan_build()
        return
    try:
        here = plan_build()
    except Unsupported:  # no compiler
        yield from _built_levels(progress)
        raise
    if not here.is_built:
        yield from _built_levels(progress)
    yield here


def _built_levels(progress: Progress) -> Iterator[Build]:
    for level in reversed(LEVELS.values()):
        if level.lacks():
            continue
        plan = plan_level(level)
        if plan.is_built:
            yield plan
        elif plan.folder.exists():
            progress(
                f"Passing over the operators for {level.name}: {plan.folder} is damaged "
                f"(qinfer build-ops --arch {level.name} makes them again)"
            )


def plan_operators(progress: Progress) -> OperatorBuild:
    """What ``qinfer build-ops`` and ``qinfer doctor`` work with: the build for this processor, or
    without a compiler what a run loads instead. Raises Unsupported where there is neither.
    """
    loaded = next(candidates(lambda line: None))
    try:
        here = plan_build()
    except Unsupported:
        here = loaded
    levels = tuple(_described(plan_level(level), progress) for level in LEVELS.values())
    return replace(_described(here, progress), loaded=_why(loaded), portable=levels)


def _why(loaded: Build) -> str:
    """A line on what a run loads; nothing where it has yet to be compiled."""
    if not loaded.is_built:
        return ""
    whom = f"{loaded.name}, the best level built that this processor has," if loaded.level else ""
    if target := os.environ.get(TARGET, "").strip():
        whom = f"{target}, as {TARGET} says,"
    return f"built for {whom or 'this processor'} at {loaded.library}"


def _described(plan: Build, progress: Progress) -> OperatorBuild:
    return OperatorBuild(
        name=plan.name,
        library=plan.library,
        is_built=plan.is_built,
        reason=plan.reason,
        lacks=plan.level.lacks() if plan.level else (),
        build=lambda force: build(plan, progress, force=force),
    )
