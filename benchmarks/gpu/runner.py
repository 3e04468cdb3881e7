"""The runner that the other benchmarks here measure: random weights of a published shape."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

BLOCK = 32
"""Tokens of a KV block, as the engine has them on a card."""


class Opened(NamedTuple):
    """``weights``: bytes of them that a decoding step reads; ``device``: the card's name."""

    runner: Any
    cache: Any
    config: Any
    weights: int
    device: str


@cache
def _card() -> tuple[Any, str]:
    """The first card with its operators, opened once in a process."""
    from qinfer.core.hardware.device import open_device
    from qinfer.core.hardware.start_paddle import import_paddle

    device = open_device("gpu")
    import_paddle(device=device.label)
    from qinfer.cuda_ops.build_cuda import build_cuda, plan_cuda
    from qinfer.cuda_ops.cuda import use_cuda
    from qinfer.cuda_ops.graphs import Card

    library = build_cuda(plan_cuda(), print)
    use_cuda(library)
    return Card(library, 0), device.name


def open_runner(name: str, quant: str, tokens: int, longest: int, most: int) -> Opened:
    """A runner whose cache holds ``tokens``, of sequences of ``longest``, ``most`` in a graph."""
    card, device = _card()
    from benchmarks.gpu.random_model import random_model
    from qinfer.core.types import CacheSpec
    from qinfer.plugins.backends.graphed import GraphRunner

    model, config, weights = random_model(name, quant)
    spec = CacheSpec(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype="bfloat16",
        block_size=BLOCK,
        num_blocks=-(-tokens // BLOCK),
    )
    blocks = -(-longest // BLOCK)
    runner = GraphRunner(model, spec, card, max_blocks=blocks, most=most, note=lambda _: None)
    return Opened(runner, spec, config, weights, device)
