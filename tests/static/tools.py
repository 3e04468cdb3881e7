"""Asking an exported folder, or what it was made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from goldens.steps import Stepper
from qinfer import LLM, SamplingParams
from qinfer.core.loading import cache_layout
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.plugins.backends.dynamic import DynamicRunner

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
CACHE = {"kv_cache_memory": 4 << 20}


def answer(folder, **options):
    with LLM(str(folder), **CACHE | options) as llm:
        return llm.generate("Hello", GREEDY)[0].completions[0].token_ids


def opened(folder, **settings):
    run = RunConfig(**{"model": str(folder), "backend": "auto"} | settings)
    return load_model(run, select(run), folder, NoProgress())


def logits(loaded, tokens, kv_cache_dtype="auto"):
    """Of two sequences: a prefill of both, a decode, and a decode beside a long chunk."""
    spec = loaded.cache or cache_layout(
        loaded.hooks, loaded.config, loaded.plan, 16, kv_cache_dtype
    )
    stepper = Stepper(loaded.model, loaded.config, 2, 48, len(tokens))
    runner = DynamicRunner(lambda *_: None, replace(spec, num_blocks=6), max_blocks=3)
    stepper.cache = runner.layers
    steps = [[tokens[:20], tokens[:5]], [tokens[20:21], tokens[5:6]], [tokens[21:22], tokens[6:20]]]
    return np.concatenate([part for step in steps for part in stepper.step(step)])
