"""``qinfer build-ops``: compile the native operators now rather than on first use."""

from __future__ import annotations

import json

import click

from qinfer.core.cli.show import note
from qinfer.core.errors import UsageError
from qinfer.core.types import OperatorBuild


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
    metavar="NUMBER",
    multiple=True,
    help="With --device gpu: a card's compute capability without its point, such as 90. Can be "
    "repeated. Without it, the cards that are here.",
)
@click.option("--force", is_flag=True, help="Compile even if it has been done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (keys above).")
def command(backend: str, device: str, arch: tuple[str, ...], force: bool, as_json: bool) -> int:
    """Compile the native operators for this processor, or for NVIDIA cards, into the cache; print
    the library's path.

    Exits with 4 and the compiler's words where that fails. The JSON object has "library" (the
    path) and "compiled" (false if that had been done before).
    """
    if arch and device != "gpu":
        raise UsageError("--arch is for --device gpu", remedy="Add --device gpu.")
    plan = plan_gpu_operators(arch) if device == "gpu" else plan_operators(backend)
    compiled = force or not plan.is_built
    if not compiled:
        note("already built")
    library = str(plan.build(force))
    click.echo(json.dumps({"library": library, "compiled": compiled}) if as_json else library)
    return 0


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
