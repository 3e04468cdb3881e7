"""Stands in for qinfer.core.llm: answers with the prompt's own words, and fails where told to.

In another process: ``python -m fake_llm run …`` is ``qinfer run …`` over this module.
"""

import os
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

from qinfer.core.errors import BadInput
from qinfer.core.outputs import Completion, Delta, RequestOutput, TokenLogprob, Usage
from qinfer.core.text.chat import chatml
from qinfer.core.types import LoadStats, RequestStats

DELAY = float(os.environ.get("FAKE_DELAY", "0"))
REPLY = os.environ.get("FAKE_REPLY", "")


class LLM:
    made: ClassVar[list["LLM"]] = []

    def __init__(self, model=None, *, progress=False, max_model_len=0, **arguments):
        self.arguments = {"model": model, "max_model_len": max_model_len, **arguments}
        self.progress, self.prompts, self.params = progress, [], []
        self.label, self.header, self.plugin = model or "demo", ["quant: fake"], "qwen2"
        self.quant = arguments.get("quant", "auto")
        self.max_model_len = max_model_len or 4096
        self.tokenizer = SimpleNamespace(encode=lambda text: text.split())
        self.load_stats = LoadStats(
            seconds=1.0,
            parameter_bytes=3 * 2**20,
            num_parameters=1000,
            layers_by_scheme={"fp8": 7},
            skipped={"lm_head": "its error is too large"},
        )
        LLM.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def chat_text(self, messages):
        return chatml(messages)

    def _words(self, prompt):
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if "FATAL" in text:
            raise RuntimeError("the engine broke")
        if "BOOM" in text:
            raise BadInput("the prompt has 9999 tokens; the context is 4096", remedy="Shorten it.")
        return (REPLY or f"echo: {text}").split(" ")

    def _request(self, prompt, params):
        self.prompts.append(prompt)
        self.params.append(params)

    def stream(self, prompt, params=None):
        self._request(prompt, params)
        words = self._words(prompt)[: params.max_tokens]
        for place, word in enumerate(words):
            time.sleep(DELAY)
            last = place == len(words) - 1
            yield Delta(
                index=0,
                text=word if last else word + " ",
                finish_reason="stop" if last else None,
                usage=Usage(prompt_tokens=3, completion_tokens=len(words)) if last else None,
                stats=_stats(len(words)) if last else None,
            )

    def generate(self, prompts, params=None):
        return [self._output(prompts, params)]

    def chat(self, messages, params=None):
        return [self._output(messages, params)]

    def _output(self, prompt, params):
        self._request(prompt, params)
        words = self._words(prompt)[: params.max_tokens]
        logprobs = None
        if params.logprobs is not None:
            top = ((5, "x", -0.5),) * params.logprobs
            logprobs = (TokenLogprob(token_id=5, token="x", logprob=-0.5, top=top),)
        completions = tuple(
            Completion(
                index=i,
                text=" ".join(words),
                token_ids=(),
                finish_reason="stop",
                logprobs=logprobs,
            )
            for i in range(params.n)
        )
        usage = Usage(prompt_tokens=3, completion_tokens=len(words) * params.n)
        stats = (_stats(len(words)),) * params.n
        return RequestOutput(
            prompt="", prompt_token_ids=(), completions=completions, usage=usage, stats=stats
        )

    def as_completed(self, prompts, params=None):
        """Takes four at a time and finishes them backwards."""
        places = enumerate(prompts)
        while group := [entry for _, entry in zip(range(4), places, strict=False)]:
            for place, prompt in reversed(group):
                time.sleep(DELAY)
                try:
                    yield place, self._output(prompt, params[place])
                except BadInput as error:
                    yield place, error


def _stats(tokens):
    return RequestStats(
        prompt_tokens=3,
        cached_tokens=1,
        output_tokens=tokens,
        finish_reason="stop",
        queue_seconds=0.0,
        first_token_seconds=0.5,
        total_seconds=1.5,
        preemptions=0,
    )


if __name__ == "__main__":
    import fake_llm
    from qinfer.core.cli import main

    sys.modules["qinfer.core.llm"] = fake_llm
    main()
