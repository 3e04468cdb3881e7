"""A folder of Paddle's pickle files as one of safetensors files, without unpickling anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qinfer.core.checkpoint.companions import copy_companions
from qinfer.core.checkpoint.files import SINGLE
from qinfer.core.checkpoint.pdparams_file import read_pdparams
from qinfer.core.checkpoint.safetensors_file import DTYPES, TensorEntry, map_tensor, shown
from qinfer.core.checkpoint.write import Pending, write_tensors
from qinfer.core.errors import BadCheckpoint, QinferError, UsageError

SUFFIX = ".pdparams"


def convert_pdparams(source: Path, output: Path, note: Callable[[str], None] | None = None) -> None:
    """Write ``output``, a folder that must not exist, with the arrays of all ``.pdparams`` files of
    ``source``, as they are, and its configuration, tokenizer and scales.

    One array is in memory at a time, and the folder appears when it is complete. Raises UsageError,
    BadCheckpoint for a file that holds anything else or is one of several ranks, and QinferError
    when the disk is full.
    """
    if output.exists():
        raise UsageError(f"{output} exists already", remedy="Name a folder that does not.")
    files = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else []
    if not files:
        raise BadCheckpoint(
            f"{source} holds no {SUFFIX} file",
            remedy="Name the folder of a checkpoint that PaddleNLP saved.",
        )
    entries = {path: read_pdparams(path) for path in files}
    _check(entries)
    folder = output.with_name(f"{output.name}.partial")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, found in entries.items():
            name = SINGLE if len(files) == 1 else f"{path.stem}.safetensors"
            write_tensors(folder / name, [_pending(entry) for entry in found.values()])
            if note is not None:
                note(f"{path.name}: {len(found)} arrays")
        copy_companions(source, folder, ())
        folder.replace(output)
    except OSError as error:
        raise QinferError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Free disk space, or name a folder on another disk.",
        ) from error


def _check(entries: dict[Path, dict[str, TensorEntry]]) -> None:
    """Raise BadCheckpoint where two files have a tensor of one name."""
    seen: dict[str, Path] = {}
    for path, found in entries.items():
        for name in found:
            if name in seen:
                raise BadCheckpoint(
                    f"{path.parent}: tensor {shown(name)} stands both in {seen[name].name} and in "
                    f"{path.name}",
                    remedy="Files of several ranks have to be merged with PaddleNLP first "
                    "(merge_tensor_parallel); otherwise leave one of them.",
                )
            seen[name] = path


def _pending(entry: TensorEntry) -> Pending:
    return Pending(
        name=entry.name,
        shape=entry.shape,
        make=partial(map_tensor, entry),
        dtype=DTYPES[entry.dtype].name,
    )
