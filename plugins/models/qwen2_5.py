"""Qwen2.5: the Qwen2 decoder with its own conventions for what a checkpoint leaves out."""

from __future__ import annotations

from dataclasses import replace

from qinfer.plugins.models.qwen2 import Qwen2


class Qwen2_5(Qwen2):  # noqa: N801 - the family's own name
    """Qwen2.5 published rotary base 1e6 and names its maker in the system prompt."""

    info = replace(Qwen2.info, name="qwen2_5", aliases=("qwen2.5",), summary="Qwen2.5 dense models")
    system_prompt = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    defaults = Qwen2.defaults | {"rope_theta": 1_000_000.0}
