"""``qinfer build-ops``: compile the native operators now rather than on first use."""

from __future__ import annotations

import json

import click

from qinfer.core.cli.show import note
from qinfer.core.errors import UsageError
from qinfer.core.types import OperatorBuild

ALL = "all"


@click.command("build-ops")
@click.option("--backend", metavar="NAME", default="dynamic", show_default=True, help="Whose.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="What the operators run on; gpu: NVIDIA cards.",
)
@click.option(
    "--arch",
    metavar="NAME",
    multiple=True,
    help="What to compile for, instead of what is here; can be repeated. Processors: x86-64-v3 "
    "(AVX2), x86-64-v4 (AVX-512), avx512-vnni, avx512-bf16, all of these (all), or native. Cards: "
    "the compute capability without its point, such as 90.",
)
@click.option("--force", is_flag=True, help="Compile even if it has been done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (keys above).")
def command(backend: str, device: str, arch: tuple[str, ...], force: bool, as_json: bool) -> int:
    """Compile the native operators for this processor, or for NVIDIA cards, into the cache; print
    the library's path.

    With --arch x86-64-v3 and the like it makes libraries for other processors too, a line each: of
    those in its cache a run takes the best that its processor can run, and needs no compiler.

    Exits with 4 and the compiler's words where that fails. The JSON object, a line for each
    library, has "arch", "library" (the path) and "compiled" (false if that had been done before).
    """
    plans = [plan_gpu_operators(arch)] if device == "gpu" else _processors(backend, arch)
    for plan in plans:
        compiled = force or not plan.is_built
        if not compiled:
            note("already built" if len(plans) == 1 else f"{plan.name}: already built")
        library = str(plan.build(force))
        found = {"arch": plan.name, "library": library, "compiled": compiled}
        click.echo(json.dumps(found) if as_json else library)
    return 0


def _processors(backend: str, arch: tuple[str, ...]) -> list[OperatorBuild]:
    """The builds of those names, each once; without one, that for this processor."""
    plan = plan_operators(backend)
    portable = {build.name: build for build in plan.portable}
    there = {"native": plan, **portable}
    names = [n for name in arch or ["native"] for n in (portable if name == ALL else [name])]
    if unknown := [name for name in names if name not in there]:
        raise UsageError(
            f"--arch {unknown[0]!r}: the {backend} backend's operators are not built for that",
            remedy=f"There are {', '.join([*there, ALL])}; for cards add --device gpu.",
        )
    return [there[name] for name in dict.fromkeys(names)]


def plan_gpu_operators(arch: tuple[str, ...] = ()) -> OperatorBuild:
    """The operators for cards of those compute capabilities, by default of those that are here.

    Does not import Paddle, which must learn of its device plugin first; raises Unsupported where
    they cannot be built.
    """
    from qinfer.core.hardware.start_paddle import gpu_builder
    from qinfer.core.progress import TerminalProgress

    plan: OperatorBuild = gpu_builder().plan_operators(arch, TerminalProgress().note)
    return plan


def plan_operators(backend: str) -> OperatorBuild:
    """Ask a backend for its operators. Imports Paddle; raises Unsupported if it has none."""
    from qinfer.core.hardware.start_paddle import import_paddle
    from qinfer.core.registry.selection import open_session, resolve

    record = resolve("backend", backend)
    import_paddle()
    return open_session([record]).plan_operators()
