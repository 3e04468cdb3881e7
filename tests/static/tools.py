"""Asking an exported folder."""

from __future__ import annotations

from qinfer import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
CACHE = {"kv_cache_memory": 4 << 20}


def answer(folder, **options):
    with LLM(str(folder), **CACHE | options) as llm:
        return llm.generate("Hello", GREEDY)[0].completions[0].token_ids
