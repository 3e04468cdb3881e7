"""The JSON files of scales in a folder of PaddleNLP's quantiser, written by one card or several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.checkpoint.stored_arrays import AGAIN, check_floats
from qinfer.core.errors import BadCheckpoint, Unsupported
from qinfer.core.json_file import read_json
from qinfer.core.types import ModelConfig
from qinfer.plugins.quant.kv_scales import named, stack

MAX_BYTES = 256 * 2**20
BY_ROWS = ("o_proj", "down_proj", "c_proj")
"""Split by inputs where several cards share a layer; the others are split by outputs."""

CACHE = re.compile(r"\.(\d+)\.[\w.]*\bcache([kv])_matmul\.activation_quanter$")


class PaddleScales:
    """The scales of linears."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.top = folder, 127.0 if form == "int8" else 448.0
        self._act, self._weight = (_files(folder, stem) for stem in ("act_scales", "weight_scales"))

    def input_scale(self, module: str) -> NDArray[np.float32] | None:
        """[1], or None for a linear without."""
        found = self._find(self._act, module, "activation_quanter")
        if not found:
            return None
        if any(len(part) != 1 or part[0] != found[0][0] for part in found):
            raise Unsupported(
                f"act_scales: {module} has {[len(part) for part in found]} scales that differ",
                remedy="Calibrate on one card, with a scale for each whole activation tensor.",
            )
        scale: NDArray[np.float32] = np.maximum(found[0] / self.top, 1e-30).astype(np.float32)
        return scale

    def weight_scale(self, module: str, out: int) -> NDArray[np.float32] | None:
        """[out], or None for a linear without."""
        found = self._find(self._weight, module, "weight_quanter")
        if not found:
            return None
        if len(found) > 1 and module.endswith(BY_ROWS):
            if any(not np.array_equal(part, found[0]) for part in found):
                raise Unsupported(
                    f"weight_scales: {module} has other scales on each card, by inputs",
                    remedy="Calibrate on one card.",
                )
            found = found[:1]
        scale = np.concatenate(found)
        if len(scale) == 1:
            scale = np.repeat(scale, out)
        if len(scale) != out:
            raise BadCheckpoint(
                f"{self.folder}/weight_scales: {module} has {len(scale)} scales where {out} are "
                "needed.",
                remedy=AGAIN,
            )
        return (scale / self.top).astype(np.float32)

    def _find(
        self, files: list[dict[str, Any]], module: str, what: str
    ) -> list[NDArray[np.float64]]:
        found = []
        for scales in files:
            for key in (f"{module}.{what}", f"{module}.layer.{what}"):
                if key in scales:
                    found.append(_floats(self.folder, scales[key], key))
                    break
        return found


def cache_scales(folder: Path, config: ModelConfig) -> NDArray[np.float32]:
    """Static scales of the int8 KV cache, [num_layers, 2, num_kv_heads]: absolute maxima / 127.

    Raises BadCheckpoint where there is no cachekv_scales.json, or it lacks some.
    """
    parts = _files(folder, "cachekv_scales")
    keys = named(parts[0], CACHE)
    found = {
        at: np.concatenate([_floats(folder, part.get(key), key) for part in parts]) / 127
        for at, key in keys.items()
    }
    return stack(config, found, f"{folder}/cachekv_scales.json")


def _files(folder: Path, stem: str) -> list[dict[str, Any]]:
    """The file of one card, or those of several in order."""
    single = folder / f"{stem}.json"
    ranks = sorted(folder.glob(f"{stem}_*.json"), key=lambda p: (len(p.name), p.name))
    paths = [single] if single.exists() else ranks
    if not paths:
        raise BadCheckpoint(
            f"{folder} is quantised by PaddleNLP and holds no {stem}.json.",
            remedy="Copy the scale files beside the weights.",
        )
    return [read_json(path, MAX_BYTES) for path in paths]


def _floats(folder: Path, value: Any, key: str) -> NDArray[np.float64]:
    """A scale, or a list of some; none of them negative."""
    try:
        array = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    check_floats(array, True, f"{folder}: the scale of {key}")
    return array
