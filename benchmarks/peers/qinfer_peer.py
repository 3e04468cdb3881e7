"""This project, as its user calls it: qinfer_peer.py MODEL QUANT THREADS"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

from serve import Arrived, Generate, Order, serve


def load() -> tuple[Generate, dict[str, Any]]:
    model, quant, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    from qinfer import LLM, SamplingParams

    llm = LLM(model=model, quant=quant, threads=threads)

    def generate(order: Order, arrived: Arrived) -> str:
        params = SamplingParams(temperature=0, max_tokens=order.new_tokens, ignore_eos=True)
        text = ""
        for delta in llm.stream(order.text, params):
            arrived(len(delta.token_ids))
            text += delta.text
            if delta.usage and delta.usage.prompt_tokens != len(order.prompt):
                raise RuntimeError(f"{delta.usage.prompt_tokens} prompt tokens were seen")
            if delta.usage and delta.usage.cached_tokens:
                raise RuntimeError("part of the prompt came from a cache")
        return text

    names = ("qinfer-paddle", "paddlepaddle", "numpy")
    return generate, {"threads": threads, "versions": {name: version(name) for name in names}}


if __name__ == "__main__":
    serve(load)
