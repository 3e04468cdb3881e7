"""The runner that the other benchmarks here measure: random weights of a published shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
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


def open_runner(name: str, quant: str, tokens: int, longest: int, most: int) -> Opened:
    """A runner whose cache holds ``tokens``, of sequences of ``longest``, ``most`` in a graph."""
    from qinfer.core.checkpoint.random_checkpoint import write_folder
    from qinfer.core.loading import cache_layout, prepare, read_model
    from qinfer.core.model_card import step_bytes
    from qinfer.core.progress import NoProgress
    from qinfer.core.published import find
    from qinfer.core.session import select
    from qinfer.core.types import RunConfig

    with TemporaryDirectory() as folder:
        write_folder(Path(folder), find(name).config)
        run = RunConfig(
            model=folder,
            quant=quant,
            device="gpu",
            max_model_len=longest,
            max_num_seqs=most,
            random_weights=True,
        )
        loaded = read_model(prepare(run, select(run), Path(folder)), NoProgress())
    layout = cache_layout(loaded.hooks, loaded.config, loaded.plan, BLOCK)
    cache = replace(layout, num_blocks=-(-tokens // BLOCK))
    runner = loaded.hooks.open_runner(loaded.model, loaded.config, cache, loaded.run)
    weights = step_bytes(loaded.config, loaded.linears, loaded.plan, cache, 0, 0)
    return Opened(runner, cache, loaded.config, weights, loaded.device.name)
