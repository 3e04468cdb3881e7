"""``qinfer build-ops``: compile the native operators now rather than on first use."""

from __future__ import annotations

import json

import click

from qinfer.core.cli.show import note
from qinfer.core.types import OperatorBuild


@click.command("build-ops")
@click.option("--backend", metavar="NAME", default="dynamic", show_default=True, help="Whose.")
@click.option("--force", is_flag=True, help="Compile even if it has been done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (keys above).")
def command(backend: str, force: bool, as_json: bool) -> int:
    """Compile the native operators for this processor into the cache; print the library's path.

    Exits with 4 and the compiler's words where that fails. The JSON object has "library" (the
    path) and "compiled" (false if that had been done before).
    """
    plan = plan_operators(backend)
    compiled = force or not plan.is_built
    if not compiled:
        note("already built")
    library = str(plan.build(force))
    click.echo(json.dumps({"library": library, "compiled": compiled}) if as_json else library)
    return 0


def plan_operators(backend: str) -> OperatorBuild:
    """Ask a backend for its operators. Imports Paddle; raises Unsupported if it has none."""
    from qinfer.core.device import import_paddle
    from qinfer.core.selection import open_session, resolve

    record = resolve("backend", backend)
    import_paddle()
    return open_session([record]).plan_operators()
