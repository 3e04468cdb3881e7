"""A checkpoint folder: which files hold its tensors, and reading one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from numpy.typing import NDArray

from qinfer.core.checkpoint.safetensors_file import TensorEntry, map_tensor, read_entries, shown
from qinfer.core.errors import BadCheckpoint
from qinfer.core.json_file import read_json
from qinfer.core.stored import StoredLinear

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 * 2**20

UNREADABLE: Mapping[str, str] = {
    ".bin": "PyTorch pickle files, which can run code when opened; they are never read. Save the "
    "model again with transformers: AutoModelForCausalLM.from_pretrained(folder)"
    ".save_pretrained(out, safe_serialization=True)",
    ".pt": "PyTorch pickle files, which can run code when opened; they are never read. Save the "
    "model again as safetensors",
    ".pdparams": "Paddle pickle files, which can run code when opened. qinfer convert takes the "
    "arrays out of them without running any, into a folder of safetensors files",
    ".gguf": "GGUF files, which are not read; take the model's original safetensors files",
}


class Checkpoint:
    """The tensors of a folder by name: model.safetensors, or shards with or without an index.

    Opening reads headers only. Raises BadCheckpoint when the files are missing, damaged,
    contradict each other or lead out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries = _find_entries(folder)

    def names(self) -> tuple[str, ...]:
        """Every tensor's name."""
        return tuple(self._entries)

    def entry(self, name: str) -> TensorEntry:
        """Where the tensor lies. Raises BadCheckpoint if there is none of that name."""
        try:
            return self._entries[name]
        except KeyError:
            raise BadCheckpoint(
                f"{self.folder} holds no tensor {shown(name)}.",
                remedy="Download the checkpoint again.",
            ) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape on disk."""
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """The tensor's dtype on disk, as safetensors names it ("BF16")."""
        return self.entry(name).dtype

    def nbytes(self, name: str) -> int:
        """The tensor's size on disk in bytes."""
        return self.entry(name).nbytes

    def stored(self, name: str) -> StoredLinear | None:
        """What stands for the weight of that name where it is quantised."""
        return None

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only array over its own mapping; drop it to unmap it."""
        return map_tensor(self.entry(name))


def _find_entries(folder: Path) -> dict[str, TensorEntry]:
    if not folder.is_dir():
        raise BadCheckpoint(
            f"{folder} is not a folder.", remedy="Point at a folder that holds a checkpoint."
        )
    if (folder / SINGLE).exists():
        return read_entries(folder / SINGLE)
    if (folder / INDEX).exists():
        return _indexed(folder)
    if (folder / "adapter_config.json").exists():
        raise BadCheckpoint(
            f"{folder} holds an adapter (LoRA), not a whole model.",
            remedy="Merge it into its base model first, for instance with peft: "
            "merge_and_unload().",
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _no_weights(folder)
    return _merged(files)


def _no_weights(folder: Path) -> BadCheckpoint:
    for suffix, what in UNREADABLE.items():
        found = sorted(path.name for path in folder.iterdir() if path.suffix == suffix)
        if found:
            return BadCheckpoint(
                f"{folder} holds no .safetensors file, only {found[0]}"
                + (f" and {len(found) - 1} more like it." if len(found) > 1 else "."),
                remedy=f"These are {what}.",
            )
    return BadCheckpoint(
        f"{folder} holds no .safetensors file.",
        remedy="Point at a folder that holds a complete checkpoint: config.json, "
        "tokenizer.json and *.safetensors.",
    )


def _merged(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """The tensors of several files, each of which may stand in one only."""
    entries: dict[str, TensorEntry] = {}
    for path in files:
        for name, entry in read_entries(path).items():
            if name in entries:
                raise BadCheckpoint(
                    f"{path.parent}: tensor {shown(name)} stands both in "
                    f"{entries[name].file.name} and in {path.name}.",
                    remedy="Remove the files that do not belong to this checkpoint; without "
                    f"{INDEX} every .safetensors file is read.",
                )
            entries[name] = entry
    return entries


def _indexed(folder: Path) -> dict[str, TensorEntry]:
    """The tensors of the shards that the index names (Hugging Face's and PaddleNLP's format)."""
    index = folder / INDEX
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f'{index} has no "weight_map".', remedy=f"Download {INDEX} again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise BadCheckpoint(
                f"{index}: tensor {shown(name)} is said to be in {shard!r:.120}, "
                "which is no file of this folder.",
                remedy="Do not use this checkpoint unless you know why its index says so.",
            )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise BadCheckpoint(
            f"{folder} lacks {len(missing)} of the {len(shards)} files that {INDEX} names: "
            + _some(missing),
            remedy="Download the missing files.",
        )
    entries = _merged(folder / shard for shard in shards)
    absent = [
        f"{shown(name)} (in {shown(shard)})"
        for name, shard in weight_map.items()
        if name not in entries or entries[name].file != folder / shard
    ]
    if absent:
        raise BadCheckpoint(
            f"{index} promises tensors that the files lack: " + _some(absent),
            remedy="Index and files are of different checkpoints: download all of them again.",
        )
    return entries


def _is_inside(shard: str) -> bool:
    """Whether a shard's name stays in the folder, whatever system reads it."""
    posix, windows = PurePosixPath(shard), PureWindowsPath(shard)
    anchored = bool(posix.anchor or windows.anchor or windows.drive)
    return bool(posix.parts) and not anchored and ".." not in windows.parts and "\0" not in shard


def _some(items: list[str], most: int = 20) -> str:
    rest = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest + "."
