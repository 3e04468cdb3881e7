"""``qinfer chat``: a conversation at the terminal, or line by line from a pipe."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from qinfer.core.cli.conversation import Conversation
from qinfer.core.cli.interrupt import stoppable
from qinfer.core.cli.options import (
    IO,
    GroupedCommand,
    model_arguments,
    model_options,
    option,
    sampling_options,
    sampling_params,
)
from qinfer.core.cli.show import end_line, note, piece, show_model, speeds
from qinfer.core.cli.texts import decode
from qinfer.core.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Generator

    from qinfer.core.llm import LLM
    from qinfer.core.outputs import Delta
    from qinfer.core.params import SamplingParams

HELP = """\
/system TEXT  set the system message (without TEXT: show it)
/reset        forget the conversation, keep the system message
/help         show this
/exit, /quit  leave; so does Ctrl-D
Ctrl-C stops an answer; what there is of it stays in the conversation."""


@click.command(cls=GroupedCommand, name="chat")
@option(IO, "--system", metavar="TEXT", default="", help="System message to begin with.")
@option(IO, "--stats", is_flag=True, help="Print speeds after each answer, on standard error.")
@option(IO, "--quiet", is_flag=True, help="Nothing on standard error but errors.")
@sampling_options
@model_options
def command(**options: Any) -> int:
    """Talk with a model. /help lists the commands. Ctrl-C stops an answer, Ctrl-D ends.

    When standard input is no terminal, each of its lines is a message.
    """
    if options["quiet"] and options["stats"]:
        raise click.UsageError("--stats and --quiet contradict each other.")
    params = sampling_params(options, max_tokens=None)
    from qinfer.core.llm import LLM

    with LLM(**model_arguments(options), progress=not options["quiet"]) as llm:
        if options["stats"]:
            show_model(llm)
        elif not options["quiet"]:
            note(f"model: {llm.label}. /help lists the commands.")
        return _Session(llm, params, options).run()


class _Session:
    """The loop: read a line, do what it says, until the end."""

    def __init__(self, llm: LLM, params: SamplingParams, options: dict[str, Any]) -> None:
        self._llm, self._params = llm, params
        self._stats, self._quiet = options["stats"], options["quiet"]
        self._talk = Conversation(llm, params.max_tokens, options["system"])
        self._terminal = sys.stdin.isatty()

    def run(self) -> int:
        """Returns the exit code."""
        if self._terminal:
            import readline  # noqa: F401 - gives input() line editing and a history
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                if not self._terminal:
                    raise
                note("")
                continue
            if line is None or line in ("/exit", "/quit"):
                return 0
            if not line:
                continue
            try:
                if line.startswith("/"):
                    self._command(line)
                else:
                    self._answer(line)
            except BadInput as error:
                if not self._terminal:
                    raise
                note(f"error: {error}")

    def _read(self) -> str | None:
        """The next line; None at the end."""
        if not self._terminal:
            data = sys.stdin.buffer.readline()
            return decode(data, "a line on standard input").strip() if data else None
        try:
            if sys.stdout.isatty():
                return input("> ").strip()
            click.echo("> ", nl=False, err=True)  # input() would put it among the answers
            return input().strip()
        except EOFError:
            note("")
            return None

    def _command(self, line: str) -> None:
        name, _, text = line.partition(" ")
        if name == "/reset":
            self._talk.reset()
            self._note("(the conversation is forgotten)")
        elif name == "/system":
            if text.strip():
                self._talk.system = text.strip()
            note(f"system message: {self._talk.system or '(none)'}")
        else:
            if name != "/help":
                note(f"unknown command {name}")
            note(HELP)

    def _answer(self, line: str) -> None:
        messages, dropped = self._talk.ask(line)
        if dropped:
            self._note(f"(the context is full: the {dropped} oldest turns were dropped)")
        pieces: list[str] = []
        ending, stats = "", None
        try:
            with stoppable() as stopped, closing(self._stream(messages)) as deltas:
                for delta in deltas:
                    pieces.append(delta.text)
                    piece(delta.text)
                    ending = delta.finish_reason or ending
                    stats = delta.stats or stats
                    if stopped():
                        ending = ending or "abort"
                        break
        except BadInput:
            self._talk.take_back()
            raise
        end_line()
        self._talk.answered("".join(pieces))
        if ending == "abort" and not self._terminal:
            raise KeyboardInterrupt
        if ending in ("abort", "length"):
            self._note("(stopped)" if ending == "abort" else "(cut: the token limit is reached)")
        if self._stats and stats is not None:
            note(speeds(stats))

    def _stream(self, messages: list[dict[str, str]]) -> Generator[Delta, None, None]:
        yield from self._llm.stream(messages, self._params)

    def _note(self, text: str) -> None:
        if not self._quiet:
            note(text)
