"""Measuring speed: one process for each quant scheme, so that peak memory is the scheme's own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median, quantiles
from typing import Any

from qinfer.core.child import python_command
from qinfer.core.errors import QinferError, UsageError
from qinfer.core.llm import LLM
from qinfer.core.params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What to measure: prompts of random tokens, greedy, to a fixed length.

    Each batch size is run ``repeat`` times after one run that is not counted.
    """

    model: str = ""
    plugin: str = ""
    quant: str = "auto"
    backend: str = "dynamic"
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    prompt_tokens: int = 128
    output_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1,)
    repeat: int = 3
    require_kernels: bool = False


def measure(settings: BenchSettings) -> list[dict[str, Any]]:
    """Measure here; one record for each batch size, each key saying what and in which unit."""
    begin = time.perf_counter()
    longest = settings.prompt_tokens + settings.output_tokens + 1
    with LLM(
        settings.model or None,
        plugin=settings.plugin or None,
        quant=settings.quant,
        backend=settings.backend,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        max_model_len=longest,
        max_num_seqs=max(settings.batch_sizes),
        max_batch_tokens=max(512, *settings.batch_sizes),
        require_kernels=settings.require_kernels,
    ) as llm:
        if llm.max_model_len < longest:
            raise UsageError(
                f"{longest - 1} tokens of prompt and output do not fit the model's context of "
                f"{llm.max_model_len}",
                remedy="Lower --prompt-tokens or --output-tokens.",
            )
        about = {
            "model": llm.label,
            "plugin": llm.plugin,
            "quant": llm.quant,
            "backend": settings.backend,
            "operators": " ".join(llm.header),
            "load_seconds": time.perf_counter() - begin,
            "parameter_bytes": llm.load_stats.parameter_bytes,
        }
        return [about | _one_size(llm, settings, size) for size in settings.batch_sizes]


def _one_size(llm: LLM, settings: BenchSettings, size: int) -> dict[str, Any]:
    """The figures of one batch size: medians over the repetitions, percentiles over all."""
    runs = [_run(llm, settings, size, turn) for turn in range(settings.repeat + 1)][1:]
    firsts = [second for run in runs for second in run["firsts"]]
    steps = [second for run in runs for second in run["steps"]]
    prefill = median(max(run["firsts"]) for run in runs)
    decode = median(sum(run["steps"]) for run in runs)
    decoded = size * (settings.output_tokens - 1)
    return {
        "batch_size": size,
        "prompt_tokens": settings.prompt_tokens,
        "output_tokens": settings.output_tokens,
        "prefill_tokens_per_s": size * settings.prompt_tokens / prefill,
        "decode_tokens_per_s": decoded / decode if decoded else None,
        "first_token_seconds_p50": median(firsts),
        "first_token_seconds_p99": _percentile(firsts, 99),
        "decode_step_seconds_p50": median(steps) if steps else None,
        "decode_step_seconds_p90": _percentile(steps, 90),
        "decode_step_seconds_p99": _percentile(steps, 99),
        "peak_memory_bytes": _peak_memory(),
    }


def _run(llm: LLM, settings: BenchSettings, size: int, turn: int) -> dict[str, list[float]]:
    """Answer ``size`` prompts at once: seconds to each first token, and of each later step."""
    params = SamplingParams(
        temperature=0, max_tokens=settings.output_tokens, ignore_eos=True
    ).with_defaults({})
    # Other tokens in every run: a prompt that was seen before would come from the prefix cache.
    draw = random.Random(f"{size} {turn}")  # noqa: S311
    vocabulary = llm.engine.limits.vocab_size
    waiting = set()
    for _ in range(size):
        tokens = [draw.randrange(vocabulary) for _ in range(settings.prompt_tokens)]
        waiting.add(llm.engine.add(tokens, params))
    begin = time.perf_counter()
    firsts: list[float] = []
    steps: list[float] = []
    while llm.engine.has_work:
        before = time.perf_counter()
        started = {request for request, _ in llm.engine.step()}
        now = time.perf_counter()
        if waiting:
            firsts += [now - begin] * len(waiting & started)
            waiting -= started
        else:
            steps.append(now - before)
    return {"firsts": firsts, "steps": steps}


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
    records: list[dict[str, Any]] = []
    for scheme in schemes:
        progress(f"Measuring {scheme}")
        asked = json.dumps(asdict(replace(settings, quant=scheme)))
        command = python_command("from qinfer.core.bench import main; main()", asked)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
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
    settings = BenchSettings(**asked | {"batch_sizes": tuple(asked["batch_sizes"])})
    try:
        answer: dict[str, Any] = {"records": measure(settings)}
    except QinferError as error:
        answer = {"error": error.message, "remedy": error.remedy, "exit_code": error.exit_code}
    with os.fdopen(answer_fd, "w", encoding="utf-8") as out:
        json.dump(answer, out)
