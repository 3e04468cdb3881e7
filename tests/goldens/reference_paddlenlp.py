"""What PaddleNLP's plain model says of a tiny first Qwen. It is imported when called."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from goldens import tiny
from goldens.reference import NEW_TOKENS, Answer


def compute(case: tiny.Case, dtype: str = "float32") -> Answer:
    """Run QWenForCausalLM in float32 on the CPU; ``dtype`` rounds the weights first.

    The prompt in one piece, then token by token over its cache: the rotary base is chosen for the
    prompt and kept.
    """
    import paddle

    model = _build(case, dtype)
    prompt = tiny.prompt(case)
    tokens = list(prompt)
    with paddle.no_grad():
        logits, past = _step(model, prompt, 0, None)
        rows = [logits]
        for _ in range(NEW_TOKENS):
            tokens.append(int(rows[-1][-1].argmax()))
            logits, past = _step(model, tokens[-1:], len(tokens) - 1, past)
            rows.append(logits)
    whole = np.concatenate(rows)
    deciding = np.sort(whole[len(prompt) - 1 : -1], axis=-1)
    margin = float((deciding[:, -1] - deciding[:, -2]).min())
    return Answer(whole, np.array(tokens[len(prompt) :], np.int64), margin)


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    import paddle
    import paddlenlp

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "paddle": paddle.__version__,
        "paddlenlp": paddlenlp.__version__,
    }


def _step(model: Any, tokens: list[int], start: int, past: Any) -> tuple[np.ndarray, Any]:
    import paddle

    out = model(
        paddle.to_tensor([tokens]),
        position_ids=paddle.arange(start, start + len(tokens)).unsqueeze(0),
        past_key_values=past,
        use_cache=True,
        return_dict=True,
    )
    return out.logits[0].numpy(), out.past_key_values


def _build(case: tiny.Case, dtype: str) -> Any:
    import paddle
    from paddlenlp.transformers import QWenConfig, QWenForCausalLM

    paddle.set_device("cpu")
    config = QWenConfig(**{**case.config, "use_flash_attention": False})
    model = QWenForCausalLM(config)
    state = {}
    for name, tensor in tiny.weights(case, dtype).items():
        is_linear = tensor.ndim == 2 and "wte" not in name
        state[name.replace("transformer.", "qwen.")] = tensor.T if is_linear else tensor
    held = model.state_dict()
    if set(held) != set(state):
        raise ValueError(f"{case.name}: {sorted(set(held) ^ set(state))}")
    for name, parameter in held.items():
        parameter.set_value(np.ascontiguousarray(state[name]))
    return model.eval()
