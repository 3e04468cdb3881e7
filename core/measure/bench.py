"""Measuring speed: one process for each quant scheme, so that peak memory is the scheme's own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from qinfer.core.child import python_command
from qinfer.core.errors import QinferError, UsageError
from qinfer.core.llm import LLM
from qinfer.core.measure.floor import operator_records, step_floor
from qinfer.core.params import SamplingParams
from qinfer.core.session import select
from qinfer.core.types import RunConfig


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What to measure: prompts of random tokens, greedy, to a fixed length.

    ``config``: a published model's name, a config.json or its folder; weights are drawn at random.
    ``requests``: of each run, as many at a time as the batch size; 0 for that many. Each case, a
    prompt length and a batch size, is run ``repeat`` times after one run that is not counted.
    ``kernels``: also time each operator of a decoding step.
    """

    model: str = ""
    config: str = ""
    plugin: str = ""
    quant: str = "auto"
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    threads: int = 0
    prompt_tokens: tuple[int, ...] = (128,)
    output_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1,)
    requests: int = 0
    max_batch_tokens: int = 0
    repeat: int = 3
    require_kernels: bool = False
    kernels: bool = False


def measure(settings: BenchSettings) -> list[dict[str, Any]]:
    """Measure here; one record for each case, each key saying what and in which unit."""
    begin = time.perf_counter()
    longest = max(settings.prompt_tokens) + settings.output_tokens + 1
    most = max(settings.batch_sizes)
    with (
        TemporaryDirectory() as folder,
        LLM(
            _model(settings, Path(folder)),
            plugin=settings.plugin or None,
            quant=settings.quant,
            backend=settings.backend,
            device=settings.device,
            dtype=settings.dtype,
            kv_cache_dtype=settings.kv_cache_dtype,
            threads=settings.threads,
            max_model_len=longest,
            max_num_seqs=most,
            max_batch_tokens=settings.max_batch_tokens,
            require_kernels=settings.require_kernels,
            random_weights=bool(settings.config),
        ) as llm,
    ):
        if llm.max_model_len < longest:
            raise UsageError(
                f"{longest - 1} tokens of prompt and output do not fit the model's context of "
                f"{llm.max_model_len}",
                remedy="Lower --prompt-tokens or --output-tokens.",
            )
        about = {
            "model": settings.config or llm.label,
            "plugin": llm.plugin,
            "quant": llm.quant,
            "backend": llm.loaded.run.backend,
            "device": f"{llm.loaded.device.label} {llm.loaded.device.name}",
            "operators": " ".join(llm.header),
            "load_seconds": time.perf_counter() - begin,
            "parameter_bytes": llm.load_stats.parameter_bytes,
        }
        cases = product(settings.prompt_tokens, settings.batch_sizes)
        return [about | _case(llm, settings, *case) for case in cases]


def _model(settings: BenchSettings, folder: Path) -> str | None:
    """What LLM is to open; for random weights ``folder``, with a config.json and a tokenizer."""
    if not settings.config:
        return settings.model or None
    from qinfer.core.checkpoint.random_checkpoint import write_folder
    from qinfer.core.json_file import read_json
    from qinfer.core.published import find

    path = Path(settings.config)
    if path.is_dir():
        path /= "config.json"
    write_folder(folder, read_json(path) if path.suffix == ".json" else find(path.name).config)
    return str(folder)


def _case(llm: LLM, settings: BenchSettings, prompt: int, size: int) -> dict[str, Any]:
    """The figures of one case: medians over the repetitions, percentiles over all."""
    runs = [_run(llm, settings, prompt, size, turn) for turn in range(settings.repeat + 1)][1:]
    firsts = [second for run in runs for second in run.firsts]
    steps = [second for run in runs for second in run.steps]
    prefill, decode = (median(run.prefill for run in runs), median(sum(run.steps) for run in runs))
    requests = settings.requests or size
    decoded = size * (settings.output_tokens - 1)
    step = median(steps) if steps else None
    context = prompt + settings.output_tokens // 2
    floor = step_floor(llm, size, context, step)
    kernels: dict[str, Any] = {}
    if settings.kernels:
        speed, engine = floor["read_bytes_per_s"], llm.engine
        kernels["kernels"] = operator_records(engine.runner, engine.cache, size, context, speed)
    return {
        "batch_size": size,
        "prompt_tokens": prompt,
        "output_tokens": settings.output_tokens,
        "requests": requests,
        # Of requests that come in later, prompts and answers share steps.
        "prefill_tokens_per_s": size * prompt / prefill if requests <= size else None,
        "decode_tokens_per_s": decoded / decode if decoded and requests <= size else None,
        "output_tokens_per_s": requests * settings.output_tokens / median(r.whole for r in runs),
        "first_token_seconds_p50": median(firsts),
        "first_token_seconds_p99": _percentile(firsts, 99),
        "decode_step_seconds_p50": step,
        "decode_step_seconds_p90": _percentile(steps, 90),
        "decode_step_seconds_p99": _percentile(steps, 99),
        **floor,
        "peak_memory_bytes": _peak_memory(),
        **kernels,
    }


@dataclass
class _Times:
    """Seconds of a run: to each first token from when its request came, to the last of them, of
    each step without a prompt, and altogether.
    """

    firsts: list[float] = field(default_factory=list)
    prefill: float = 0
    steps: list[float] = field(default_factory=list)
    whole: float = 0


def _run(llm: LLM, settings: BenchSettings, prompt: int, size: int, turn: int) -> _Times:
    """Answer the requests, ``size`` at a time."""
    params = SamplingParams(
        temperature=0, max_tokens=settings.output_tokens, ignore_eos=True
    ).with_defaults({})
    # Other tokens in every run: a prompt that was seen before would come from the prefix cache.
    draw = random.Random(f"{prompt} {size} {turn}")  # noqa: S311
    tokens = range(llm.engine.limits.vocab_size)
    later = [draw.choices(tokens, k=prompt) for _ in range(settings.requests or size)]
    waiting: dict[int, float] = {}
    running, times, begin = 0, _Times(), time.perf_counter()
    while llm.engine.has_work or later:
        while later and running < size:
            waiting[llm.engine.add(later.pop(), params)] = time.perf_counter()
            running += 1
        before, had_prompts = time.perf_counter(), bool(waiting)
        deltas = llm.engine.step()
        now = time.perf_counter()
        for request, delta in deltas:
            if request in waiting:
                times.firsts.append(now - waiting.pop(request))
                times.prefill = now - begin
            running -= delta.finish_reason is not None
        if not had_prompts:
            times.steps.append(now - before)
    times.whole = time.perf_counter() - begin
    return times


def _percentile(values: Sequence[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_all(
    settings: BenchSettings, schemes: Sequence[str], progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure each scheme in a process of its own. Raises what ``measure`` raises."""
    for scheme in schemes:  # a misspelt name is said before anything is measured
        select(RunConfig(plugin=settings.plugin, quant=scheme, backend=settings.backend))
    records: list[dict[str, Any]] = []
    for scheme in schemes:
        progress(f"Measuring {scheme}")
        asked = json.dumps(asdict(replace(settings, quant=scheme)))
        command = python_command("from qinfer.core.measure.bench import main; main()", asked)
        # A Ctrl-C is for this process, which then ends the other.
        deaf = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, preexec_fn=deaf
        )
        answer = json.loads(done.stdout) if done.stdout else {}
        if "records" not in answer:
            raise _Failed(answer, scheme, done.returncode)
        records += answer["records"]
    return records


class _Failed(QinferError):
    """The error of a measuring process, with its exit code."""

    def __init__(self, answer: dict[str, Any], scheme: str, code: int) -> None:
        said = answer.get("error", f"ended with exit code {code}")
        super().__init__(f"measuring {scheme}: {said}", remedy=answer.get("remedy", ""))
        self.exit_code = answer.get("exit_code", 1)


def main() -> None:
    """In the measuring process: settings as JSON in sys.argv, the answer as JSON on stdout."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    asked = json.loads(sys.argv[1])
    lists = {name: tuple(asked[name]) for name in ("batch_sizes", "prompt_tokens")}
    settings = BenchSettings(**asked | lists)
    try:
        answer: dict[str, Any] = {"records": measure(settings)}
    except QinferError as error:
        answer = {"error": error.message, "remedy": error.remedy, "exit_code": error.exit_code}
    with os.fdopen(answer_fd, "w", encoding="utf-8") as out:
        json.dump(answer, out)
