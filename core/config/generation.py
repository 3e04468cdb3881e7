"""generation_config.json: the settings a checkpoint is published with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qinfer.core.config.check import ConfigChecker
from qinfer.core.errors import BadCheckpoint
from qinfer.core.json_file import read_json
from qinfer.core.types import ModelConfig


def generation_config(folder: Path) -> dict[str, Any]:
    """The parsed generation_config.json of a checkpoint, {} where it has none."""
    path = folder / "generation_config.json"
    return read_json(path) if path.exists() else {}


def with_generation(config: ModelConfig, generation: Mapping[str, Any]) -> ModelConfig:
    """``config`` with the ``eos_token_id`` (int or list) of generation_config.json added.

    Raises BadCheckpoint if that is no token id.
    """
    check = ConfigChecker(generation, {})
    ids = check.tokens("eos_token_id", generation.get("eos_token_id"), config.vocab_size)
    if check.problems:
        raise BadCheckpoint(
            f"generation_config.json: {check.problems[0]}.",
            remedy="Correct that key or remove the file.",
        )
    merged: Sequence[int] = (*config.eos_token_ids, *ids)
    return replace(config, eos_token_ids=tuple(dict.fromkeys(merged)))
