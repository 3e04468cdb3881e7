"""A folder in the cache that is made once: complete or not there, whoever is killed meanwhile."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qinfer.core.errors import BadCheckpoint
from qinfer.core.json_file import read_json

if sys.platform != "win32":
    import fcntl

MANIFEST = "manifest.json"
Progress = Callable[[str], None]
"""Is given one line of text at a time, to be shown on stderr."""

LOCK_SECONDS = 900.0
"""How long to wait for another process that is making the same folder."""


def is_intact(folder: Path, *, verify: bool = False) -> bool:
    """Whether every file the manifest lists is there, by size; with ``verify`` by sha256."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        for name, facts in files.items():
            path = folder / name
            if path.stat().st_size != facts["size"]:
                return False
            if verify and file_sha256(path) != facts["sha256"]:
                return False
    except (BadCheckpoint, OSError, KeyError, TypeError, AttributeError, ValueError):
        return False
    return True


def make_once(
    folder: Path,
    fill: Callable[[Path], None],
    *,
    verify: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make ``folder`` unless it is intact, with ``force`` also then: ``fill`` writes its files into
    an empty folder beside it, which then takes the name ``folder`` in one step.

    One process at a time does this, the others wait. What a killed one left is removed. Of what is
    there nothing is written, not even a lock: it may lie in an image that cannot be.
    Raises BadCheckpoint when the disk is full or the cache cannot be written; then, as with any
    error out of ``fill``, nothing is left behind.
    """
    if not force and is_intact(folder, verify=verify):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f"{folder.name}.lock", progress):
            if force or not is_intact(folder, verify=verify):
                make_folder(folder, lambda new: _seal(new, fill))
    except OSError as error:
        raise _explained(folder, error) from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make ``folder``, or make it anew: ``fill`` writes its files into an empty folder beside it,
    which takes the name ``folder`` in one step. OSError passes; then, as with any error out of
    ``fill``, nothing is left behind. What a killed process left is removed.
    """
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    new.mkdir()
    try:
        fill(new)
        for path in new.iterdir():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        _sync_folder(new)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(new, folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _seal(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill the folder and write the manifest of its files."""
    fill(folder)
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({"files": files}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path, progress: Progress | None) -> Iterator[None]:
    """Hold the lock file; the system frees it when a process dies."""
    with path.open("ab") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        told = False
        while not _try_lock(file):
            if progress and not told:
                progress("Waiting for another process that is preparing the same files")
            told = True
            if time.monotonic() > deadline:
                raise BadCheckpoint(
                    f"another process has held {path} for {LOCK_SECONDS:.0f} seconds.",
                    remedy="End that process, or set QINFER_CACHE to another folder.",
                )
            time.sleep(0.1)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    if sys.platform == "win32":  # no flock: two processes may both do the work
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _explained(folder: Path, error: OSError) -> BadCheckpoint:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadCheckpoint(
            f"the disk is full: {folder} could not be written.",
            remedy="Free some space, or set QINFER_CACHE to a folder on another disk.",
        )
    return BadCheckpoint(
        f"{folder} could not be written: {error.strerror or error}.",
        remedy="Check the folder's permissions, or set QINFER_CACHE to one you may write.",
    )
