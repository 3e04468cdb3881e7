"""A checkpoint without files: random numbers in the shapes that a configuration asks for.

Speed and memory depend on the shapes alone, so a model need not be downloaded to be measured.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.arrays import numpy_dtype
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.rules import source_shapes
from qinfer.core.checkpoint.safetensors_file import DTYPES, TensorEntry
from qinfer.core.text.byte_level import BYTE_OF
from qinfer.core.types import WeightRule

NOISE = 1 << 24
"""Numbers drawn; every tensor is a stretch of them, so that making one takes no time."""


class RandomCheckpoint(Checkpoint):
    """The sources of the first rule of each target, in ``dtype`` ("bfloat16", "float16",
    "float32"): deviation 0.02, norms around 1. The same numbers every time.
    """

    def __init__(self, folder: Path, rules: Iterable[WeightRule], dtype: str) -> None:
        self.folder = folder
        kind = numpy_dtype(dtype)
        name_of = next(name for name, known in DTYPES.items() if known == kind)
        first: dict[str, WeightRule] = {}
        for rule in rules:
            if rule.op != "skip":
                first.setdefault(rule.target, rule)
        self._entries = {
            name: TensorEntry(
                name=name,
                file=folder / "random",
                dtype=name_of,
                shape=shape,
                offset=0,
                nbytes=prod(shape) * kind.itemsize,
            )
            for rule in first.values()
            for name, shape in zip(rule.source, source_shapes(rule), strict=True)
        }
        norms = {name for rule in first.values() if "norm" in rule.target for name in rule.source}
        self._norms = frozenset(norms)
        noise = np.random.default_rng(0).standard_normal(NOISE, np.float32) * np.float32(0.02)
        self._noise = noise.astype(kind)

    def read(self, name: str) -> NDArray[Any]:
        """A read-only array: part of the noise, from a place that depends on the name."""
        shape = self.shape(name)
        start, count = zlib.crc32(name.encode()) % (NOISE // 2), prod(shape)
        whole = self._noise[start:] if count <= NOISE - start else np.resize(self._noise, count)
        array: NDArray[Any] = whole[:count].reshape(shape)
        if name in self._norms:
            array = (array.astype(np.float32) + 1).astype(array.dtype)
        array = array.view()
        array.flags.writeable = False
        return array


def write_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """What a checkpoint's folder needs beside weights: the config.json, and a tokenizer that knows
    single bytes. Tokens beyond those have no text.
    """
    tokens = {char: number for number, char in enumerate(BYTE_OF)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level | {"use_regex": False},
        "decoder": level | {"use_regex": True},
        "model": {"type": "BPE", "vocab": tokens, "merges": []},
    }
    for name, content in (("config.json", config), ("tokenizer.json", tokenizer)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
