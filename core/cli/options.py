"""The options that several commands share, and help that shows them in groups."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from qinfer.core.params import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

MODEL, SAMPLING, IO = "Model", "Sampling", "Input and output"

_UNITS = {"": 1, "B": 1, "K": 1000, "KB": 1000, "M": 1000**2, "MB": 1000**2, "G": 1000**3}
_UNITS |= {"GB": 1000**3, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TB": 10**12, "TIB": 2**40}


if TYPE_CHECKING:  # newer click has it generic, and older can't be subscripted
    _SizeBase = click.ParamType[int]
    _BiasBase = click.ParamType[tuple[int, float]]
else:
    _SizeBase = _BiasBase = click.ParamType


class GroupedOption(click.Option):
    """An option under a heading of --help. ``aliases`` work but aren't shown, and so does
    every name with underscores, as PaddleNLP writes them.
    """

    def __init__(
        self, decls: list[str], *, group: str = "", aliases: tuple[str, ...] = (), **rest: Any
    ) -> None:
        self.group = group
        named = [name for name in (*decls, *aliases) if name.startswith("--")]
        spelled = [f"--{name[2:].replace('-', '_')}" for name in named if "-" in name[2:]]
        self.hidden_names = {*aliases, *spelled}
        super().__init__([*decls, *aliases, *spelled], **rest)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """As click does it; a model or a plugin without a name, perhaps an unset variable of a
        script, is an error and not the demo or the default.
        """
        said = ctx.get_parameter_source(self.name or "") is ParameterSource.COMMANDLINE
        if value == "" and said and self.group == MODEL:
            raise click.BadParameter("it is empty; name one, or leave the option out", ctx, self)
        return super().process_value(ctx, value)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's line in --help, by its main name."""
        return click.Option.get_help_record(self._shown(), ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """What errors call the option, its main name as well."""
        return click.Option.get_error_hint(self._shown(), ctx)

    def _shown(self) -> GroupedOption:
        shown = copy.copy(self)
        shown.opts = [name for name in self.opts if name not in self.hidden_names]
        return shown


class GroupedCommand(click.Command):
    """A command whose --help lists options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group, in the order groups first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "group", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(f"{title} options"):
                formatter.write_dl(records)


class Size(_SizeBase):
    """Bytes: a plain number, or one with a unit (2GB is 2 * 1000**3, 2GiB 2 * 1024**3)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number and its unit."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value, re.ASCII)
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size; write for example 512MiB, 2GB or bytes", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


class TokenBias(_BiasBase):
    """``TOKEN_ID=BIAS``."""

    name = "token=bias"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, float]:
        """Read the token id and the number added to its logit."""
        if isinstance(value, tuple):
            return int(value[0]), float(value[1])
        token, _, bias = value.partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not TOKEN_ID=BIAS, for example 151643=-100", param, ctx)


def option(group: str, *decls: str, **rest: Any) -> Callable[[F], F]:
    """A click option under a heading; ``aliases`` names what works without being shown."""
    kind = rest.get("type")
    if kind in (int, float) or isinstance(kind, click.IntRange):
        rest.setdefault("metavar", "X" if kind is float else "N")
    return click.option(*decls, cls=GroupedOption, group=group, **rest)


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorate in reversed(options):  # the first listed is to be the first in --help
            function = decorate(function)
        return function

    return apply


def model_options(function: F) -> F:
    """Which model, with which plugins, on what."""
    count = click.IntRange(min=0)
    return _all(
        option(MODEL, "--model", metavar="FOLDER|HUB_ID", aliases=("--model-name-or-path",),
               help="Checkpoint or exported model: a folder, or an id of the Hugging Face hub. "
               "Without it, a small demo model."),
        option(MODEL, "--plugin", metavar="NAME",
               help="Model family's plugin. Without it, config.json decides."),
        option(MODEL, "--quant", metavar="NAME", default="auto", aliases=("--quant-type",),
               show_default=True,
               help="Quantisation scheme: none, wint8, fp8, …; auto is the checkpoint's own."),
        option(MODEL, "--backend", metavar="NAME", default="auto", show_default=True,
               help="What runs the model: dynamic, static; auto is dynamic, or what an exported "
               "folder was made for."),
        option(MODEL, "--observer", "observers", metavar="NAME", multiple=True,
               help="Observer plugin to call as work goes on. Can be repeated."),
        option(MODEL, "--device", metavar="NAME", default="auto", show_default=True,
               help="cpu, gpu or gpu:N; auto is the first card that can be used, else cpu."),
        option(MODEL, "--dtype", default="auto", show_default=True,
               type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
               help="Precision of the parameters; auto is the checkpoint's."),
        option(MODEL, "--threads", type=count, default=0,
               help="Threads to compute with. Without it, one per usable processor."),
        option(MODEL, "--require-kernels", is_flag=True,
               help="Stop where the native operators cannot be built, instead of computing with "
               "the slow reference ones."),
        option(MODEL, "--max-model-len", type=count, default=0, aliases=("--total-max-length",),
               help="Longest prompt and answer together, in tokens."),
        option(MODEL, "--max-num-seqs", type=count, default=0, aliases=("--batch-size",),
               help="Most requests computed at a time. Without it, 64, and 256 on a GPU."),
        option(MODEL, "--max-batch-tokens", type=count, default=0,
               help="Most tokens in one step; longer prompts go in pieces. Without it, 512, and "
               "8192 on a GPU."),
        option(MODEL, "--kv-cache-memory", type=Size(), default=0, metavar="SIZE",
               help="Memory for keys and values, for example 2GB or 512MiB."),
        option(MODEL, "--kv-cache-dtype", default="auto", show_default=True,
               type=click.Choice(["auto", "int8", "fp8"]),
               help="What keys and values are held in; auto is the scheme's choice."),
    )(function)  # fmt: skip


def sampling_options(function: F) -> F:
    """How tokens are chosen. What isn't given comes from generation_config.json."""
    return _all(
        option(SAMPLING, "--max-tokens", type=int, aliases=("--max-length", "--max-new-tokens"),
               help="Most tokens of an answer. run: 256 unless given; chat: up to the context."),
        option(SAMPLING, "--min-tokens", type=int, default=0, aliases=("--min-length",),
               help="No end before this many tokens."),
        option(SAMPLING, "--temperature", type=float, help="0 always takes the likeliest token."),
        option(SAMPLING, "--top-k", type=int, help="Only the k likeliest tokens; 0 is off."),
        option(SAMPLING, "--top-p", type=float,
               help="Only the likeliest tokens that together have this probability."),
        option(SAMPLING, "--min-p", type=float,
               help="Only tokens at least this probable, as a share of the likeliest's."),
        option(SAMPLING, "--repetition-penalty", type=float,
               help="Divides the logits of tokens that were there before; 1 is off."),
        option(SAMPLING, "--presence-penalty", type=float, default=0.0,
               help="Taken off the logits of tokens the answer has."),
        option(SAMPLING, "--frequency-penalty", type=float, default=0.0,
               help="The same, for each time the answer has them."),
        option(SAMPLING, "--seed", type=int, help="Same seed, same text."),
        option(SAMPLING, "--stop", multiple=True, metavar="TEXT",
               help="Text that ends an answer. Can be repeated."),
        option(SAMPLING, "--stop-token-id", "stop_token_ids", type=int, metavar="ID", multiple=True,
               help="Token that ends an answer. Can be repeated."),
        option(SAMPLING, "--ignore-eos", is_flag=True, help="Go on after the end-of-text token."),
        option(SAMPLING, "--logit-bias", type=TokenBias(), multiple=True, metavar="TOKEN_ID=BIAS",
               help="Added to a token's logit. Can be repeated."),
    )(function)  # fmt: skip


_SAMPLING_NAMES = (
    "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop", "stop_token_ids", "ignore_eos",
)  # fmt: skip


def sampling_params(
    options: Mapping[str, Any], *, max_tokens: int | None, **more: Any
) -> SamplingParams:
    """The parameters that parsed options ask for. Raises InvalidParams.

    ``max_tokens`` is used when the option wasn't given; ``more`` are settings of one command.
    """
    given = options["max_tokens"]
    return SamplingParams(
        max_tokens=max_tokens if given is None else given,
        logit_bias=dict(options["logit_bias"]),
        **{name: options[name] for name in _SAMPLING_NAMES},
        **more,
    )


_MODEL_NAMES = (
    "model", "plugin", "quant", "backend", "observers", "device", "dtype", "threads",
    "max_model_len", "max_num_seqs", "max_batch_tokens", "kv_cache_memory",
    "kv_cache_dtype",
    "require_kernels",
)  # fmt: skip


def model_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the parsed options ``LLM`` takes."""
    return {name: options[name] for name in _MODEL_NAMES}
