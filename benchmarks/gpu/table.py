"""The table of benchmarks/gpu/NOTES.md in one process: every model made once, every case measured.

python -m benchmarks.gpu.table qwen2-0.5b:none qwen2-7b:fp8 --out table.json

Both the lines and the file say what is measured on which card, and grow model by model: a run that
is cut short has given what it had.

A row: milliseconds of a decoding step for 1 sequence after 1,024 tokens, for 8 and 64 after 512,
then of a prompt of 1,024 and of 8,192 tokens, then output tokens a second of 256 requests of 512
tokens with 256 answered, through the engine, the first and the second time.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.decode import BANDWIDTH, decode, prefill
from benchmarks.gpu.machine import describe
from benchmarks.gpu.runner import BLOCK, Opened, open_runner
from benchmarks.gpu.throughput import engine_of, measure

STEPS = ((1, 1024), (8, 512), (64, 512))
PROMPTS = (1024, 8192)
REQUESTS = argparse.Namespace(requests=256, input=512, output=256, seqs=256, batch_tokens=8192)
LONGEST = REQUESTS.input + REQUESTS.output + 1


def row(opened: Opened) -> dict[str, Any]:
    """Every case of one model; the floor of a step is the bytes it reads by ``BANDWIDTH``."""
    per_token = opened.cache.bytes_per_block / opened.cache.block_size
    found: dict[str, Any] = {}
    # Prompts first: the engine's requests leave the card warm, which costs it some of its clock.
    for length in PROMPTS:
        found[f"prompt_{length}_ms"] = prefill(opened.runner, opened.config, length)
    for batch, length in STEPS:
        floor = (opened.weights + batch * length * per_token) / BANDWIDTH * 1e3
        case = decode(opened.runner, opened.config, batch, length)
        found[f"step_{batch}x{length}"] = {"floor_ms": floor, **case}
    engine = engine_of(opened.runner, opened.cache, opened.config.vocab_size, REQUESTS)
    found["requests"] = [measure(engine, REQUESTS, seed) for seed in range(2)]
    return found


def line(case: str, found: dict[str, Any]) -> str:
    """The row as NOTES.md has it."""
    steps = [found[f"step_{batch}x{length}"] for batch, length in STEPS]
    cells = [f"{step['step_ms']:.3f}, {step['floor_ms'] / step['step_ms']:.0%}" for step in steps]
    cells += [f"{found[f'prompt_{length}_ms']:.1f}" for length in PROMPTS]
    cells += [" then ".join(f"{run['output_tokens_per_s']:,.0f}" for run in found["requests"])]
    return f"| {' | '.join([case.replace(':', ' '), *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="+", help="MODEL:SCHEME")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", help="that is measured, where git does not know")
    options = parser.parse_args()
    machine = describe(options.commit)
    print(machine, flush=True)
    rows: dict[str, Any] = {}
    for case in options.case:
        name, quant = case.split(":")
        tokens = REQUESTS.requests * (LONGEST + BLOCK)
        opened = open_runner(name, quant, tokens=tokens, longest=8192, most=REQUESTS.seqs)
        rows[case] = row(opened)
        print(line(case, rows[case]), flush=True)
        opened.runner.close()
        del opened
        gc.collect()
        if options.out:
            options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
