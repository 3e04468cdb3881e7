"""This project, as its user calls it: qinfer_peer.py MODEL QUANT THREADS"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from serve import Arrived, Generate, Order, serve


def load() -> tuple[Generate, dict[str, Any]]:
    model, quant, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    from qinfer import LLM, SamplingParams

    llm = LLM(model=model, quant=quant, threads=threads)

    def generate(orders: Sequence[Order], arrived: Arrived) -> list[str]:
        """Submit all, then read them by turns: a step of the engine serves every one."""
        texts = ["" for _ in orders]
        running = {}
        for place, order in enumerate(orders):
            params = SamplingParams(temperature=0, max_tokens=order.new_tokens, ignore_eos=True)
            running[place] = llm.submit(order.text, params).request
        while running:
            for place, request in list(running.items()):
                for delta in llm.collect(request):
                    arrived(place, len(delta.token_ids))
                    texts[place] += delta.text
                    if delta.usage:
                        check(delta.usage, orders[place])
                        llm.drop(running.pop(place))
        return texts

    names = ("qinfer-paddle", "paddlepaddle", "numpy")
    return generate, {"threads": threads, "versions": {name: version(name) for name in names}}


def check(usage: Any, order: Order) -> None:
    """The prompt that is measured must be the whole of it and have been worked through."""
    if usage.prompt_tokens != len(order.prompt):
        raise RuntimeError(f"{usage.prompt_tokens} prompt tokens were seen")
    if usage.cached_tokens:
        raise RuntimeError("part of the prompt came from a cache")


if __name__ == "__main__":
    serve(load)
