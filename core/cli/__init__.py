"""The ``qinfer`` command. Each subcommand's module is imported only when it is called."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

import qinfer
from qinfer.core.errors import QinferError

COMMANDS = {
    "run": ("qinfer.core.cli.run", "Generate text for one prompt or a file of them."),
    "chat": ("qinfer.core.cli.chat", "Talk with a model."),
    "build-ops": ("qinfer.core.cli.build_ops", "Compile the native operators before first use."),
    "info": ("qinfer.core.cli.info", "Show what a model is and what memory it needs."),
    "bench": ("qinfer.core.cli.bench", "Measure how fast a model runs here."),
    "eval": ("qinfer.core.cli.eval", "Measure what a quant scheme costs in accuracy."),
    "quantize": ("qinfer.core.cli.quantize", "Write a quantised checkpoint."),
    "convert": ("qinfer.core.cli.convert", "Write .pdparams files as safetensors."),
    "export": ("qinfer.core.cli.export", "Write a model as a program that runs by itself."),
    "list-plugins": ("qinfer.core.cli.list_plugins", "List the installed plugins."),
    "doctor": ("qinfer.core.cli.doctor", "Check that this computer is ready, and say what is not."),
}
"""Subcommand -> (module whose ``command`` it is, the line that --help shows)."""


class LazyGroup(click.Group):
    """A group whose --help imports no subcommand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand; None for an unknown one."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a did-you-mean. Raises UsageError for an unknown command."""
        name = args[0]
        if name in COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(COMMANDS)}."
        ctx.fail(f'No such command "{name}"; {hint}')

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands section of --help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(qinfer.__version__, message="qinfer %(version)s")
def group() -> None:
    """Inference for the Qwen family on PaddlePaddle, built from plugins."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process: 0, or the error's exit code.

    With QINFER_DEBUG=1 in the environment errors leave as tracebacks.
    """
    _open_closed_streams()
    sys.exit(_run(sys.argv[1:] if args is None else list(args)))


def _open_closed_streams() -> None:
    """Standard streams that whoever started us closed (``>&-``) lead nowhere. Python has None for
    them, and the next file that is opened would get their number, and what is meant for them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _run(args: list[str]) -> int:
    try:
        code = _invoke(args)
        sys.stdout.flush()  # here, where a closed pipe or a full disk can still be reported
        return code
    except BrokenPipeError:
        _drop_stdout()
        return 141  # what a shell shows for SIGPIPE: whoever read our output has seen enough
    except (click.Abort, KeyboardInterrupt, click.ClickException, Exception) as error:
        if os.environ.get("QINFER_DEBUG") == "1":
            raise
        return _report(error)


def _invoke(args: list[str]) -> int:
    """The command's exit code: what it returns or passes to ctx.exit, 0 for None.

    Not click's own main(): that turns a closed pipe into exit code 1.
    """
    try:
        with group.make_context("qinfer", args) as context:
            code = group.invoke(context)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    return code if isinstance(code, int) else 0


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong; the exit code for it."""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        click.echo("", err=True)  # ends the line with the terminal's ^C
        return 130
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, QinferError):
        click.echo(f"qinfer: error: {error.message}", err=True)
        if error.remedy:
            click.echo(error.remedy, err=True)
        return error.exit_code
    if isinstance(error, OSError):
        _drop_stdout()  # it may be what failed, and would fail again as the interpreter ends
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "the output"
            click.echo(f"qinfer: error: cannot write {where}: {error.strerror}", err=True)
            return 1
    text = " ".join(f"{type(error).__name__}: {error}".split())
    click.echo(f"qinfer: internal error: {text}", err=True)
    click.echo("Set QINFER_DEBUG=1 to see the traceback.", err=True)
    return 1


def _drop_stdout() -> None:
    """Send what is still buffered for stdout nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
