"""In a process of its own: what transformers answers on the card. Arguments: a case's name and the
file to write: ``tokens`` [64], the greedy continuation in float32; ``exact`` and ``rounded``
[prompt + 64, vocab], the logits of all of it in float32 and in bfloat16.
"""

import sys

import numpy as np
import torch

from goldens import tiny
from goldens.reference import build
from gpu.real_shapes import CASES, NEW_TOKENS


def answer(case: tiny.Case) -> dict[str, np.ndarray]:
    model = build(case, "bfloat16").cuda()
    tokens = tiny.prompt(case)

    def logits():
        given = torch.tensor([tokens], device="cuda")
        return model(given, use_cache=False).logits[0].float().cpu().numpy()

    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            tokens.append(int(logits()[-1].argmax()))
        exact = logits()
        model = model.to(torch.bfloat16)
        found = {"exact": exact, "rounded": logits()}
    return found | {"tokens": np.array(tokens[case.prompt_length :])}


if __name__ == "__main__":
    np.savez(sys.argv[2], **answer(CASES[sys.argv[1]]))
