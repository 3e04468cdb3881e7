"""``qinfer run``: one prompt, one conversation, or a JSONL file of them."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qinfer.core.cli.options import (
    IO,
    SAMPLING,
    GroupedCommand,
    model_arguments,
    model_options,
    option,
    sampling_options,
    sampling_params,
)
from qinfer.core.cli.show import end_line, note, piece, show_model, show_requests
from qinfer.core.cli.texts import check_prompt, read_conversation, read_stdin, with_system
from qinfer.core.errors import QinferError
from qinfer.core.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qinfer.core.llm import LLM
    from qinfer.core.outputs import Delta, RequestOutput
    from qinfer.core.types import RequestStats

DEFAULT_MAX_TOKENS = 256


@click.command(cls=GroupedCommand, name="run")
@click.argument("prompt", required=False)
@option(
    IO,
    "--chat",
    "chat_file",
    metavar="FILE.json",
    help='Messages to answer: a JSON list of {"role", "content"}; - is standard input.',
)
@option(IO, "--system", metavar="TEXT", default="", help="System message to begin with.")
@option(IO, "--raw", is_flag=True, help="Complete the prompt as it is, without a chat template.")
@option(
    IO,
    "--input",
    "input_file",
    metavar="FILE.jsonl",
    aliases=("--data-file",),
    type=click.Path(path_type=Path),
    help="Batch: one prompt a line, see above.",
)
@option(
    IO,
    "--output",
    "output_file",
    metavar="FILE.jsonl",
    aliases=("--output-file",),
    help="Where the batch's results go; - is standard output.",
)
@option(IO, "--restart", is_flag=True, help="Begin a batch anew instead of continuing it.")
@option(IO, "--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@option(IO, "--stats", is_flag=True, help="Print speeds and memory on standard error.")
@option(IO, "--quiet", is_flag=True, help="Nothing on standard error but errors.")
@option(SAMPLING, "-n", "n", type=int, default=1, help="Answers to a prompt.")
@option(
    SAMPLING,
    "--logprobs",
    type=int,
    help="With --json: log-probabilities of the tokens, and of this many alternatives.",
)
@sampling_options
@model_options
def command(prompt: str | None, **options: Any) -> int:
    """Generate text for PROMPT, for standard input (no PROMPT, or -), for the messages of --chat,
    or for each line of --input.

    The answer goes to standard output as it is made, everything else to standard error.

    A line of --input is {"prompt": …}, {"messages": […]} or PaddleNLP's {"src": …, "tgt": …},
    and may have "system" and "params" (such as {"max_tokens": 9}) of its own. A batch that was
    interrupted continues when the same command is run again.
    """  # fmt: skip
    _check_usage(prompt, options)
    params = sampling_params(
        options, max_tokens=DEFAULT_MAX_TOKENS, n=options["n"], logprobs=options["logprobs"]
    )
    if options["input_file"] is not None:
        from qinfer.core.cli.run_batch import run_batch

        return run_batch(options, params)
    request = _request(prompt, options)
    from qinfer.core.llm import LLM

    with LLM(**model_arguments(options), progress=not options["quiet"]) as llm:
        if options["stats"]:
            show_model(llm)
        elif not options["quiet"]:
            note(f"model: {llm.label}")
        whole = options["as_json"] or params.n > 1
        return (_print_whole if whole else _print_stream)(llm, request, params, options)


def _check_usage(prompt: str | None, options: dict[str, Any]) -> None:
    """Refuse options that contradict each other."""
    sources = {"PROMPT": prompt, "--chat": options["chat_file"], "--input": options["input_file"]}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"Give only one of {' and '.join(given)}.")
    batch = options["input_file"] is not None
    if batch != (options["output_file"] is not None):
        raise click.UsageError("A batch needs both --input and --output.")
    if options["restart"] and not batch:
        raise click.UsageError("--restart is for batches (--input).")
    if options["raw"] and (options["system"] or options["chat_file"]):
        raise click.UsageError("--raw uses no chat template: leave out --system and --chat.")
    if options["logprobs"] is not None and not (options["as_json"] or batch):
        raise click.UsageError("--logprobs can't be shown in plain text: add --json.")
    if options["quiet"] and options["stats"]:
        raise click.UsageError("--stats and --quiet contradict each other.")
    if not given and sys.stdin.isatty():
        raise click.UsageError(
            "Missing PROMPT: give it as an argument, on standard input, or with --chat or --input."
        )


def _request(prompt: str | None, options: dict[str, Any]) -> str | list[dict[str, str]]:
    """What to answer: a text for --raw, else messages."""
    if options["chat_file"] is not None:
        return with_system(read_conversation(options["chat_file"]), options["system"])
    text = check_prompt(read_stdin("the prompt") if prompt in (None, "-") else str(prompt))
    if options["raw"]:
        return text
    return with_system([{"role": "user", "content": text}], options["system"])


def _print_stream(
    llm: LLM,
    request: str | list[dict[str, str]],
    params: SamplingParams,
    options: dict[str, Any],
) -> int:
    """Print an answer as it is made. Ctrl-C ends it with the text so far."""
    deltas: Iterator[Delta] = llm.stream(request, params)
    stats: list[RequestStats] = []
    text = ""
    try:
        with closing(deltas):  # type: ignore[type-var] # it is a generator
            for delta in deltas:
                if delta.text:
                    text = delta.text
                    piece(text)
                if delta.stats is not None:
                    stats.append(delta.stats)
    except KeyboardInterrupt:
        end_line()
        return 130
    except QinferError:
        if text:
            end_line()  # the error is a line of its own
        raise
    end_line()
    if options["stats"]:
        show_requests(stats)
    return 0


def _print_whole(
    llm: LLM,
    request: str | list[dict[str, str]],
    params: SamplingParams,
    options: dict[str, Any],
) -> int:
    """Print a finished request: JSON on one line, or each of n answers under its number."""
    run = llm.generate if isinstance(request, str) else llm.chat
    output: RequestOutput = run(request, params)[0]  # type: ignore[arg-type]
    if options["as_json"]:
        about = {"model": llm.label, "plugin": llm.plugin, "quant": llm.quant}
        click.echo(json.dumps({**about, **output.to_json()}, ensure_ascii=False))
    else:
        for completion in output.completions:
            click.echo(f"[{completion.index}]\n{completion.text}")
    if options["stats"]:
        show_requests(output.stats)
    return 0
