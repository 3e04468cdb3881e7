"""``qinfer run --input``: a JSONL batch with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from qinfer.core.batch.lines import BatchSettings
from qinfer.core.batch.run import Batch
from qinfer.core.cli.options import model_arguments
from qinfer.core.cli.show import note, peak_memory, show_model, size
from qinfer.core.errors import BadInput
from qinfer.core.params import SamplingParams

# How fast a batch runs and how much it holds in memory may change between two runs of it.
_FREE_TO_CHANGE = (
    "observers", "threads", "max_num_seqs", "max_batch_tokens", "kv_cache_memory",
    "require_kernels",
)  # fmt: skip


def run_batch(options: dict[str, Any], params: SamplingParams) -> int:
    """Run the file of --input. Returns 0, 5 if any line failed, 130 if interrupted."""
    settings = BatchSettings(params=params, system=options["system"], raw=options["raw"])
    arguments = model_arguments(options)
    fixed = {name: value for name, value in arguments.items() if name not in _FREE_TO_CHANGE}
    fixed["version"] = metadata.version("qinfer-paddle")
    output: Path | IO[bytes] = sys.stdout.buffer
    if options["output_file"] != "-":
        output = Path(options["output_file"])
    source: Path = options["input_file"]
    batch = Batch(source, output, settings, fingerprint=fixed, restart=options["restart"])
    with closing(batch):
        if batch.done and not options["quiet"]:
            note(f"continuing: {batch.done} of {batch.total} lines are there already")
        try:
            _run(batch, arguments, options)
        except KeyboardInterrupt:
            note(f"\nstopped after {batch.done} of {batch.total} lines")
            if batch.journal is not None:
                note(f"they are in {batch.journal.path}; the same command continues there")
            return 130
    if batch.failed:
        note(f'{batch.failed} of {batch.total} lines failed: see "error" in their output')
        return BadInput.exit_code
    return 0


def _run(batch: Batch, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    from qinfer.core.llm import LLM

    with LLM(**arguments, progress=not options["quiet"]) as llm:
        if options["stats"]:
            show_model(llm)
        elif not options["quiet"]:
            note(f"model: {llm.label}")
        with _bar(batch.total, shown=not options["quiet"]) as advance:
            batch.run(llm, advance)
    if options["stats"]:
        note(f"peak memory: {size(peak_memory())}")


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over lines on stderr, if that is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("lines", total=total)
        yield lambda count: progress.update(task, completed=count)
