"""``qinfer.json``: what an exported folder holds, where it comes from and what it needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinfer.core.errors import BadCheckpoint, Unsupported, UsageError
from qinfer.core.export.codec import from_json, to_json
from qinfer.core.json_file import read_json
from qinfer.core.types import CacheSpec, ExportNeeds, LinearSpec, LoadStats, ModelConfig, QuantPlan

NAME = "qinfer.json"
FORMAT = 1
"""Raised by what an older reader would misunderstand, which new fields with defaults are not."""

AGAIN = "Export the model again, or copy the folder again from where it is whole."


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A plugin that took part in the export: its name, distribution, version and API."""

    name: str
    distribution: str
    version: str
    api: str

    @property
    def reference(self) -> str:
        """The unambiguous name, "dist:name"."""
        return f"{self.distribution}:{self.name}"


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A file's bytes and SHA-256; of a file in several pieces that of their sums (checks.py)."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that running an exported folder takes to know.

    ``device`` is "cpu" or "gpu". ``cache`` has no number of blocks, which a run chooses. The
    context is ``config.max_position_embeddings``; ``config.extra`` is empty. ``parameters`` says
    what the weights were as they were exported.
    """

    format: int = FORMAT
    qinfer: str
    paddle: str
    device: str
    model: Maker
    quant: Maker
    backend: Maker
    config: ModelConfig
    linears: tuple[LinearSpec, ...]
    plan: QuantPlan
    cache: CacheSpec
    needs: ExportNeeds
    parameters: LoadStats
    files: Mapping[str, FileFacts]


def is_export(folder: Path) -> bool:
    """Whether a folder was exported."""
    return (folder / NAME).is_file()


def require_checkpoint(folder: Path) -> None:
    """Raise UsageError for an exported folder, whose weights only its own program can read."""
    if is_export(folder):
        raise UsageError(
            f"{folder} is an exported folder", remedy="Name the checkpoint it was made from."
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, with a checksum of itself."""
    content = to_json(manifest)
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder; of the other files nothing is read.

    Raises Unsupported for a newer format, and BadCheckpoint for a manifest that is damaged, was
    changed, or says what it cannot.
    """
    path = folder / NAME
    raw = read_json(path)
    found = raw.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise Unsupported(
            f"{folder} was exported in format {found}, by qinfer {raw.get('qinfer')!r:.40}; this "
            f"version reads formats up to {FORMAT}",
            remedy="Upgrade qinfer, or export the model again with this version.",
        )
    said = raw.pop("sha256", None)
    if said != _digest(raw):
        raise BadCheckpoint(
            f"{path} is damaged or was changed: its checksum does not fit.", remedy=AGAIN
        )
    try:
        manifest = from_json(Manifest, raw, NAME)
        _check(manifest)
    except ValueError as error:
        raise BadCheckpoint(f"{path}: {error}.", remedy=AGAIN) from None
    return manifest


def _check(manifest: Manifest) -> None:
    """What types don't say. Raises ValueError."""
    config, cache = manifest.config, manifest.cache
    sizes = {
        "format": manifest.format,
        "config.vocab_size": config.vocab_size,
        "config.max_position_embeddings": config.max_position_embeddings,
        "cache.num_layers": cache.num_layers,
        "cache.num_kv_heads": cache.num_kv_heads,
        "cache.head_dim": cache.head_dim,
        "cache.block_size": cache.block_size,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{NAME}.{name} is {size}, which must be at least 1")
    if manifest.device not in ("cpu", "gpu"):
        raise ValueError(f"{NAME}.device is {manifest.device!r:.40}, not cpu or gpu")
    for name in manifest.files:
        if name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f"{NAME}.files names {name!r:.80}, which is not in the folder")


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
