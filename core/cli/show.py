"""What ``run`` and ``chat`` print besides the answer: settings, speeds, notices (stderr)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from qinfer.core.progress import answer_line
from qinfer.core.types import RequestStats

if TYPE_CHECKING:
    from qinfer.core.llm import LLM


def note(text: str) -> None:
    """One line on stderr."""
    click.echo(text, err=True)


def piece(text: str) -> None:
    """A piece of an answer on standard output."""
    click.echo(text, nl=False)
    if text:
        answer_line.is_open = not text.endswith("\n")


def end_line() -> None:
    """End the answer's last line."""
    click.echo()
    answer_line.is_open = False


def show_model(llm: LLM) -> None:
    """The model, what the plugins report, and what loading took."""
    loaded = llm.load_stats
    note(f"model: {llm.label}, context {llm.max_model_len:,} tokens")
    for line in llm.header:
        note(line)
    kinds = ", ".join(f"{n} {name}" for name, n in sorted(loaded.layers_by_scheme.items()))
    note(
        f"loaded: {loaded.num_parameters:,} parameters in {size(loaded.parameter_bytes)} "
        f"({kinds} linears), {loaded.seconds:.2f} s"
    )
    by_reason: dict[str, list[str]] = {}
    for name, reason in loaded.skipped.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        note(f"not quantised: {', '.join(names[:3])}{more}: {reason}")


def show_requests(all_stats: Iterable[RequestStats]) -> None:
    """A line of speeds for each finished answer, and the process's peak memory."""
    for stats in all_stats:
        note(speeds(stats))
    peak = peak_memory()
    if peak:
        note(f"peak memory: {size(peak)}")


def speeds(stats: RequestStats) -> str:
    """Token counts, time to first token and tokens per second of one answer."""
    prefilled = stats.prompt_tokens - stats.cached_tokens
    prefill_seconds = stats.first_token_seconds - stats.queue_seconds
    decode_seconds = stats.total_seconds - stats.first_token_seconds
    cached = f" ({stats.cached_tokens} cached)" if stats.cached_tokens else ""
    return (
        f"prompt: {stats.prompt_tokens} tokens{cached}, {_rate(prefilled, prefill_seconds)}; "
        f"answer: {stats.output_tokens} tokens, "
        f"{_rate(stats.output_tokens - 1, decode_seconds)}; "
        f"first token after {stats.first_token_seconds:.3f} s, "
        f"all after {stats.total_seconds:.3f} s; finish reason: {stats.finish_reason}"
    )


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if tokens > 0 and seconds > 0 else "- tokens/s"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def peak_memory() -> int:
    """The most memory this process has had resident, in bytes; 0 where that isn't known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
