"""transformers with PyTorch: transformers_peer.py MODEL DTYPE THREADS"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from serve import Arrived, Generate, Order, serve


class Streamer:
    """What ``generate`` reports to: it puts the prompts first, then a new token of each."""

    def __init__(self, arrived: Arrived) -> None:
        self.arrived, self.prompts = arrived, True

    def put(self, value: Any) -> None:
        for place in range(0 if self.prompts else len(value)):
            self.arrived(place, 1)
        self.prompts = False

    def end(self) -> None:
        """Nothing to do at the end."""


def load() -> tuple[Generate, dict[str, Any]]:
    folder, dtype, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    ).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    model.generation_config.eos_token_id = None  # or it would stop before new_tokens

    def generate(orders: Sequence[Order], arrived: Arrived) -> list[str]:
        """One batch of prompts of equal length."""
        ids = torch.tensor([order.prompt for order in orders])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=orders[0].new_tokens,
                do_sample=False,
                streamer=Streamer(arrived),
            )
        return [str(tokenizer.decode(row)) for row in output[:, ids.shape[1] :]]

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return generate, {"threads": torch.get_num_threads(), "versions": versions}


if __name__ == "__main__":
    serve(load)
