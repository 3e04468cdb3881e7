"""From finished layers to a checkpoint folder in a format's own names and layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.arrays import round_to
from qinfer.core.checkpoint.assemble import assemble
from qinfer.core.checkpoint.companions import copy_companions
from qinfer.core.checkpoint.files import INDEX, Checkpoint
from qinfer.core.checkpoint.layout import PADDLE_NAME, LoadPlan
from qinfer.core.checkpoint.safetensors_file import write_tensors
from qinfer.core.errors import Unsupported
from qinfer.core.protocols import Store
from qinfer.core.quantize.work import WorkFolder
from qinfer.core.types import Array, LinearSpec, ModelConfig, Scheme, WeightRule

SMALL = ("scale", "input_scale", "zero")


class Writer:
    """Writes the shards, the index and everything beside them into a new folder."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        checkpoint: Checkpoint,
        loading: LoadPlan,
        rules: Iterable[WeightRule],
        config: ModelConfig,
    ) -> None:
        self.folder, self.store, self.config = folder, store, config
        self.checkpoint, self.loading = checkpoint, loading
        self.rules = _named(rules, store.layout)
        self.index: dict[str, str] = {}
        self.total = 0
        self.plain: list[str] = []
        self.kept: dict[str, tuple[Scheme, Mapping[str, Array]]] = {}
        self.norms: dict[str, Array] = {}
        self.kv_cache = ""
        self.kv_scales: dict[str, Array] = {}

    def layer(
        self,
        number: int,
        specs: Sequence[LinearSpec],
        schemes: Mapping[str, Scheme],
        work: WorkFolder,
    ) -> None:
        """The shard of one decoder layer's quantised linears."""
        held = {spec.name: dict(work.finished(spec) or {}) for spec in specs}
        for spec in specs:
            self._fold(spec, held)
        tensors: dict[str, Array] = {}
        for spec in specs:
            for name, arrays in _split(self.rules[f"{spec.name}.weight"], held[spec.name]):
                tensors |= self.store.linear(name, schemes[spec.name], arrays)
                small = {key: arrays[key] for key in SMALL if key in arrays}
                self.kept[name] = schemes[spec.name], small
        self._save(f"model-layer-{number:05d}.safetensors", tensors)

    def cache(self, dtype: str, scales: Array) -> None:
        """The shard of the KV cache's static scales [num_layers, 2, num_kv_heads]."""
        self.kv_cache = dtype
        tensors: dict[str, Array] = {}
        for layer, own in enumerate(scales):
            # Attention is what the projections of queries, keys and values belong to.
            (first, *_) = self.rules[f"layers.{layer}.qkv.weight"].source
            attention = first.rsplit(".", 2)[0]
            self.kv_scales[attention] = own
            tensors |= self.store.cache(attention, own)
        if tensors:
            self._save("model-kv-cache.safetensors", tensors)

    def rest(self, done: Iterable[str]) -> None:
        """The shard of everything that is not quantised, rounded to the model's dtype."""
        tensors: dict[str, Array] = {}
        quantised = {f"{name}.weight" for name in done}
        for target, pick in self.loading.picks.items():
            if target in quantised:
                continue
            rule = self.rules[target]
            array = assemble(self.checkpoint, pick)
            if target in self.norms:
                array = (array.astype(np.float32) * self.norms[target]).astype(np.float32)
            whole = round_to(array, self.config.dtype, target)
            for name, part in _split(rule, {"weight": whole}):
                own = np.asarray(part["weight"])
                self.plain += [name] if rule.linear else []
                flip = rule.linear and self.store.layout == "paddle"
                tensors[name] = np.ascontiguousarray(own.T if flip else own)
        self._save("model-rest.safetensors", tensors)

    def finish(self, raw: Mapping[str, Any], source: Path) -> None:
        """The index, config.json and the format's other files, and what the source has besides."""
        index = {"metadata": {"total_size": self.total}, "weight_map": self.index}
        plain = [name for name in self.plain if name not in self.kept]
        said = self.store.files(raw, self.kept, plain, self.kv_cache, self.kv_scales)
        files = {INDEX: index, **said}
        copy_companions(source, self.folder, files)
        for name, content in files.items():
            text = json.dumps(content, indent=2) + "\n"
            (self.folder / name).write_text(text, encoding="utf-8")

    def _fold(self, spec: LinearSpec, held: dict[str, dict[str, Array]]) -> None:
        """Move the scaling of a linear's input into what makes that input, where that is known."""
        smooth = held[spec.name].get("smooth")
        if smooth is None:
            return
        if spec.norm:
            self.norms[spec.norm] = held[spec.name].pop("smooth")
        elif not self.store.vectors and spec.scaled_by in held and "scale" in held[spec.scaled_by]:
            maker = held[spec.scaled_by]
            scale = np.array(maker["scale"])
            rows = scale[-len(smooth) :]
            rows *= smooth.reshape(-1, *[1] * (scale.ndim - 1))
            maker["scale"] = scale
            del held[spec.name]["smooth"]

    def _save(self, name: str, tensors: Mapping[str, Array]) -> None:
        held = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
        write_tensors(self.folder / name, held, {"format": self.store.metadata})
        self.index |= dict.fromkeys(held, name)
        self.total += sum(array.nbytes for array in held.values())


def _named(rules: Iterable[WeightRule], layout: str) -> dict[str, WeightRule]:
    """For every target the alternative in the format's naming."""
    chosen: dict[str, WeightRule] = {}
    for rule in rules:
        if rule.op == "skip":
            continue
        if rule.op not in ("copy", "fuse"):
            raise Unsupported(
                f"{rule.target} is made from its checkpoint by {rule.op}, which cannot be written",
                remedy="Quantise a checkpoint in the Hugging Face layout.",
            )
        is_paddle = any(PADDLE_NAME.match(name) for name in rule.source)
        if rule.target not in chosen or is_paddle == (layout == "paddle"):
            chosen.setdefault(rule.target, rule)
            if is_paddle == (layout == "paddle"):
                chosen[rule.target] = rule
    return chosen


def _split(
    rule: WeightRule, arrays: Mapping[str, Array]
) -> Iterable[tuple[str, dict[str, NDArray[Any]]]]:
    """A fused parameter's arrays as those of its sources."""
    from qinfer.core.stored import OF_THE_INPUT

    start = 0
    for name, rows in zip(rule.source, rule.sizes or (None,), strict=False):
        end = None if rows is None or rule.op == "copy" else start + rows
        part = {
            key: np.asarray(array if key in OF_THE_INPUT else array[start:end])
            for key, array in arrays.items()
        }
        yield name, part
        start += rows or 0
