"""Qwen1.5: the Qwen2 decoder with its own conventions for what a checkpoint leaves out."""

from __future__ import annotations

from dataclasses import replace

from qinfer.plugins.models.qwen2 import Qwen2


class Qwen1_5(Qwen2):  # noqa: N801 - the family's own name
    """Qwen1.5 published rotary base 1e6 and a system prompt without a full stop."""

    info = replace(Qwen2.info, name="qwen1_5", aliases=("qwen1.5",), summary="Qwen1.5 dense models")
    system_prompt = "You are a helpful assistant"
    defaults = Qwen2.defaults | {"rope_theta": 1_000_000.0}
