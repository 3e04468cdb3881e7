"""What transformers says of a tiny model. Needs torch and transformers, imported when called."""

from __future__ import annotations

import platform
from typing import Any, NamedTuple

import numpy as np

from goldens import tiny
from goldens.case import ARCHITECTURES

NEW_TOKENS = 24


class Answer(NamedTuple):
    """``logits`` [prompt + NEW_TOKENS, vocab] float32 of the prompt followed by ``tokens``, the
    greedy continuation [NEW_TOKENS]; ``margin``: least gap between its best and second logit."""

    logits: np.ndarray
    tokens: np.ndarray
    margin: float


def compute(case: tiny.Case, dtype: str = "float32") -> Answer:
    """Run the case's model in float32 with eager attention; ``dtype`` rounds the weights first.

    The continuation is chosen by re-running the whole sequence each time: no cache takes part.
    """
    import torch

    model = build(case, dtype)
    prompt = tiny.prompt(case)
    if case.more.get("rope_scaling", {}).get("type") == "dynamic":
        # The base grows with every call and stays: let it be that of the length this project
        # rounds the prompt's up to.
        grown = 1 << (len(prompt) - 1).bit_length()
        model(torch.zeros([1, grown], dtype=torch.int64), use_cache=False)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            tokens.append(
                int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
            )
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    deciding = np.sort(logits[len(prompt) - 1 : -1], axis=-1)
    margin = float((deciding[:, -1] - deciding[:, -2]).min())
    return Answer(logits, np.array(tokens[len(prompt) :], np.int64), margin)


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def build(case: tiny.Case, dtype: str) -> Any:
    import torch
    import transformers

    architecture = ARCHITECTURES[case.family]
    config = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(**case.config)
    config._attn_implementation = "eager"
    model = getattr(transformers, architecture)(config).to(torch.float32)
    state = {name: torch.from_numpy(t) for name, t in _stacked(case, dtype).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - ({"lm_head.weight"} if case.tied else set()):
        raise ValueError(f"{case.name}: missing {missing}, unexpected {unexpected}")
    if case.tied:
        model.tie_weights()
    _check_theta(model, case)
    return model.eval()


def _stacked(case: tiny.Case, dtype: str) -> dict[str, np.ndarray]:
    """The weights as transformers 5 holds them: experts one above the other, gate and up fused."""
    held = tiny.weights(case, dtype)
    for layer in filter(case.is_sparse, range(case.num_layers)):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {
            name: np.stack(
                [held.pop(f"{prefix}.{e}.{name}.weight") for e in range(case.more["num_experts"])]
            )
            for name in ("gate_proj", "up_proj", "down_proj")
        }
        fused = np.concatenate([parts["gate_proj"], parts["up_proj"]], axis=1)
        held |= {f"{prefix}.gate_up_proj": fused, f"{prefix}.down_proj": parts["down_proj"]}
    return held


def _check_theta(model: Any, case: tiny.Case) -> None:
    """Transformers 4 and 5 name the rotary base differently; a default must not slip in."""
    if "rope_scaling" in case.more:
        return
    exponents = np.arange(0, case.head_dim, 2) / case.head_dim
    held = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(held, case.rope_theta**-exponents, rtol=1e-5)
