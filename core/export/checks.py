"""Whether an exported folder's files are those that were exported."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from qinfer.core.errors import BadCheckpoint
from qinfer.core.export.manifest import AGAIN, FileFacts
from qinfer.core.huge_pages import ask_for_huge_pages
from qinfer.core.machine import usable_cores

Pieces = Sequence[Future[bytes]]
"""The sums of a file's pieces, in their order."""


PIECE = 64 << 20
"""Bytes of a file that are summed at a time, by as many threads as there are processors: one would
sum the parameters of a large model for longer than a card takes to load them.
"""


def file_facts(folder: Path) -> dict[str, FileFacts]:
    """Size and checksum of every file in a folder."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    with ThreadPoolExecutor(usable_cores()) as pool:
        sums = {name: _begin(pool, folder / name, size) for name, size in sizes.items()}
        return {
            name: FileFacts(size=size, sha256=_joined(sums[name])) for name, size in sizes.items()
        }


@contextmanager
def checking(folder: Path, files: Mapping[str, FileFacts]) -> Iterator[Checksums]:
    """Compare sizes at once, and begin to compare checksums while the caller does other things.

    Reading 269 MB takes 0.2 s, which is nothing beside importing Paddle at the same time.
    """
    _compare_sizes(folder, files)
    with ThreadPoolExecutor(max(2, usable_cores())) as pool:
        sums = {name: _begin(pool, folder / name, facts.size) for name, facts in files.items()}
        yield Checksums(folder, files, sums)
        pool.shutdown(cancel_futures=True)


class Checksums:
    """Checksums that are being computed."""

    def __init__(
        self, folder: Path, files: Mapping[str, FileFacts], sums: Mapping[str, Pieces]
    ) -> None:
        self.folder, self.files, self.sums = folder, files, sums

    def require(self) -> None:
        """Wait for all of them. Raises BadCheckpoint naming a file that is not as it was."""
        for name, found in self.sums.items():
            try:
                is_right = _joined(found) == self.files[name].sha256
            except OSError as error:
                raise _bad(self.folder, name, f"cannot be read: {error.strerror}") from error
            if not is_right:
                raise _bad(self.folder, name, "is damaged or was changed: its checksum is another")


def _begin(pool: ThreadPoolExecutor, path: Path, size: int) -> Pieces:
    return [pool.submit(_sum_piece, path, start) for start in range(0, size or 1, PIECE)]


def _sum_piece(path: Path, start: int) -> bytes:
    """SHA-256 of up to PIECE bytes from ``start`` on. Read through a mapping, because parameters
    come into the system's cache here, and their pages are to be huge.
    """
    with path.open("rb") as file:
        size = min(PIECE, os.fstat(file.fileno()).st_size - start)
        if size <= 0:  # there is nothing to map
            return hashlib.sha256().digest()
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start) as piece:
            ask_for_huge_pages(piece)
            return hashlib.sha256(piece).digest()


def _joined(pieces: Pieces) -> str:
    """Of one piece its SHA-256, of several that of their sums in a row; hexadecimal."""
    sums = [piece.result() for piece in pieces]
    return sums[0].hex() if len(sums) == 1 else hashlib.sha256(b"".join(sums)).hexdigest()


def _compare_sizes(folder: Path, files: Mapping[str, FileFacts]) -> None:
    for name, facts in files.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            raise _bad(folder, name, "is missing") from None
        except OSError as error:
            raise _bad(folder, name, f"cannot be read: {error.strerror}") from error
        if size != facts.size:
            how = "is truncated" if size < facts.size else "is too long"
            raise _bad(folder, name, f"{how}: it has {size:,} of {facts.size:,} bytes")


def _bad(folder: Path, name: str, what: str) -> BadCheckpoint:
    return BadCheckpoint(f"{folder / name} {what}.", remedy=AGAIN)
