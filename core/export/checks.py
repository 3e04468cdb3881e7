"""Whether an exported folder's files are those that were exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from qinfer.core.errors import BadCheckpoint
from qinfer.core.export.manifest import AGAIN, FileFacts
from qinfer.core.store import file_sha256


def file_facts(folder: Path) -> dict[str, FileFacts]:
    """Size and checksum of every file in a folder."""
    return {
        path.name: FileFacts(size=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(folder.iterdir())
    }


@contextmanager
def checking(folder: Path, files: Mapping[str, FileFacts]) -> Iterator[Checksums]:
    """Compare sizes at once, and begin to compare checksums while the caller does other things.

    Reading 269 MB takes 0.2 s, which is nothing beside importing Paddle at the same time.
    """
    _compare_sizes(folder, files)
    with ThreadPoolExecutor(2) as pool:
        sums = {name: pool.submit(file_sha256, folder / name) for name in files}
        yield Checksums(folder, files, sums)
        pool.shutdown(cancel_futures=True)


class Checksums:
    """Checksums that are being computed."""

    def __init__(
        self, folder: Path, files: Mapping[str, FileFacts], sums: Mapping[str, Future[str]]
    ) -> None:
        self.folder, self.files, self.sums = folder, files, sums

    def require(self) -> None:
        """Wait for all of them. Raises BadCheckpoint naming a file that is not as it was."""
        for name, found in self.sums.items():
            try:
                is_right = found.result() == self.files[name].sha256
            except OSError as error:
                raise _bad(self.folder, name, f"cannot be read: {error.strerror}") from error
            if not is_right:
                raise _bad(self.folder, name, "is damaged or was changed: its checksum is another")


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
