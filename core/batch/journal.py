"""A batch's results on their way to the output file, safe against being killed.

Finished lines are appended to OUTPUT.partial, whose first line says what they belong to. At the
end they are sorted into a new file that then takes the output's place in one step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from qinfer.core.errors import UsageError, cannot_write

_VERSION = 1
_CONTINUE = "Make room and run the same command again: it continues where it stopped."
_ELSEWHERE = "Give --output a path in a folder that is there and that you may write to."


class Journal:
    """The partial output of one batch.

    ``header`` is the input's hash and the settings; a partial output with another one is refused
    (UsageError) unless ``restart``, which starts over. ``finished`` holds the indices already
    there, ``failed`` how many of them are errors.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], *, restart: bool = False) -> None:
        self._output = output
        self.path = output.with_name(output.name + ".partial")
        self._offsets: dict[int, int] = {}
        self.failed = 0
        try:
            self._file = FileIO(self.path, "a+")
        except OSError as error:
            raise cannot_write(self.path, error, remedy=_ELSEWHERE) from None
        try:
            _lock(self._file, self.path)
            if restart:
                self._file.truncate(0)
            self._resume({"qinfer_batch": _VERSION, **header})
        except BaseException:
            self._file.close()  # and with it the lock
            raise

    @property
    def finished(self) -> Mapping[int, int]:
        """Index of each finished line (and where in the partial output it stands)."""
        return self._offsets

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a finished line, whose "index" is not there yet. Raises QinferError."""
        self._offsets[record["index"]] = self._write(record)
        self.failed += "error" in record

    def publish(self) -> None:
        """Sort the lines by index into the output file, and drop the partial one."""
        ordered = self._output.with_name(self._output.name + ".sorted")
        try:
            with self.path.open("rb") as source, ordered.open("wb") as target:
                for _, offset in sorted(self._offsets.items()):
                    source.seek(offset)
                    target.write(source.readline())
                target.flush()
                os.fsync(target.fileno())
            os.replace(ordered, self._output)
            self.path.unlink()
        except OSError as error:
            ordered.unlink(missing_ok=True)
            raise cannot_write(self._output, error, remedy=_CONTINUE) from None

    def close(self) -> None:
        """Close the file; the partial output stays unless it was published."""
        self._file.close()

    def _resume(self, header: dict[str, Any]) -> None:
        with self.path.open("rb") as file:
            first = file.readline()
            if first.endswith(b"\n"):
                self._check_header(first, header)
                end = self._read_finished(file)
                self._file.truncate(end)  # a line cut short by a kill or a full disk
                return
        self._file.truncate(0)
        self._write(header)

    def _check_header(self, first: bytes, header: dict[str, Any]) -> None:
        try:
            found = json.loads(first)
            differing = [name for name in header if found.get(name) != header[name]]
        except (ValueError, AttributeError):
            differing = ["everything (it is no partial output of this program)"]
            found = {}
        if "settings" in differing and isinstance(found.get("settings"), dict):
            differing.remove("settings")
            settings, old = header["settings"], found["settings"]
            differing += [name for name in settings if old.get(name) != settings[name]]
        if differing:
            names = ", ".join("the input file" if n == "input_sha256" else n for n in differing)
            raise UsageError(
                f"{self.path} was left by another batch; different are: {names}",
                remedy="Run the command that began it, or add --restart to start over, "
                "or choose another --output.",
            )

    def _read_finished(self, file: Any) -> int:
        """Note the finished lines; return where the last whole one ends."""
        end: int = file.tell()
        for line in file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else {}
                self._offsets[int(record["index"])] = end
            except (ValueError, TypeError, KeyError):
                break
            self.failed += "error" in record
            end += len(line)
        return end

    def _write(self, record: Mapping[str, Any]) -> int:
        """Append a line and return where it begins."""
        data = encode_line(record)
        try:
            begin = self._file.seek(0, os.SEEK_END)
            while data:  # a nearly full disk takes a part, and only the next write fails
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise cannot_write(self.path, error, remedy=_CONTINUE) from None
        return begin


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One JSON line in UTF-8; a lone surrogate, which UTF-8 can't write, stays escaped."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def _lock(file: FileIO, path: Path) -> None:
    """Refuse to write where another process does. Windows has no such lock."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{path} is being written by another batch",
            remedy="Wait for it to end, or choose another --output.",
        ) from None
    except OSError:
        pass  # some network file systems know no locks
