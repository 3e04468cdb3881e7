"""Print an answer as it is made: python examples/stream.py [QUESTION] [MODEL]."""

from __future__ import annotations

import sys

from qinfer import LLM, SamplingParams


def main(question: str = "What is the capital of France?", model: str | None = None) -> None:
    """Without MODEL the demo checkpoint answers."""
    messages = [{"role": "user", "content": question}]
    with LLM(model, quant="fp8") as llm:
        for delta in llm.stream(messages, SamplingParams(max_tokens=64)):
            print(delta.text, end="", flush=True)
            if delta.usage is not None:
                print(f"\n[{delta.finish_reason}, {delta.usage.completion_tokens} tokens]")


if __name__ == "__main__":
    main(*sys.argv[1:])
