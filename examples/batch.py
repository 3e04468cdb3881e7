"""Answer several questions together: python examples/batch.py [MODEL]."""

from __future__ import annotations

import sys

from qinfer import LLM, SamplingParams
from qinfer.core.errors import QinferError

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "again and " * 10_000,  # longer than the context: refused, and the others run all the same
    "What is two plus two?",
]


def main(model: str | None = None) -> None:
    """Without MODEL the demo checkpoint answers."""
    conversations = [[{"role": "user", "content": text}] for text in QUESTIONS]
    with LLM(model) as llm:
        # In the order they finish; llm.chat(...) gives a list in the order asked instead.
        for place, result in llm.as_completed(conversations, SamplingParams(max_tokens=24)):
            if isinstance(result, QinferError):
                print(f"{place}: refused: {result.message}")
            else:
                print(f"{place}: {result.text!r} ({result.completions[0].finish_reason})")


if __name__ == "__main__":
    main(*sys.argv[1:])
