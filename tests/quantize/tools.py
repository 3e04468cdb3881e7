"""Quantising a tiny model, and its logits."""

from __future__ import annotations

from goldens import tiny
from goldens.steps import step_logits
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig

CASE = tiny.CASES["gqa"]
KV_FORMATS = ["compressed-tensors", "paddlenlp"]
"""Those that hold static scales of the KV cache."""
TOKENS = tiny.prompt(CASE)


def settings_of(folder, **changes):
    chosen = {"quant": "a8w8", "tokens": 600, "window": 60, "group_size": 32, **changes}
    return QuantizeSettings(model=str(folder), **chosen)


def made(folder, output, **changes):
    quantize(settings_of(folder, **changes), output, NoProgress())
    return output


def logits_of(folder, quant="auto"):
    run = RunConfig(model=str(folder), quant=quant, dtype="float32")
    opened = load_model(run, select(run), folder, NoProgress())
    return step_logits(opened, TOKENS, [len(TOKENS)]), opened.stats


def opened_plan(folder):
    run = RunConfig(model=str(folder))
    return load_model(run, select(run), folder, NoProgress()).plan


def files_of(folder):
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != "quantize-report.json"
    }
