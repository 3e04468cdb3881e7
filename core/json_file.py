"""Reading a JSON object from a file nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qinfer.core.errors import BadCheckpoint

MAX_JSON_BYTES = 16 * 2**20


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most ``max_bytes`` bytes (UTF-8, with or without a byte order mark).

    Raises BadCheckpoint naming the file, the line where there is one, and the remedy.
    """
    text = _bounded_text(path, max_bytes)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadCheckpoint(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}.",
            remedy=_again(path),
        ) from None
    except RecursionError:
        raise BadCheckpoint(f"{path}: nested too deeply to be real.", remedy=_again(path)) from None
    except ValueError as error:  # such as a number of more digits than Python converts
        raise BadCheckpoint(f"{path}: not valid JSON: {error}.", remedy=_again(path)) from None
    if not isinstance(value, dict):
        raise BadCheckpoint(
            f"{path} holds a {type(value).__name__}, not a JSON object.", remedy=_again(path)
        )
    return value


def _bounded_text(path: Path, max_bytes: int) -> str:
    try:
        if not path.exists():
            raise BadCheckpoint(
                f"there is no {path.name} in {path.parent}.",
                remedy="Point at a folder that holds a complete checkpoint: config.json, "
                "tokenizer.json and *.safetensors.",
            )
        if not path.is_file():  # opening a pipe would wait for ever
            raise BadCheckpoint(f"{path} is not an ordinary file.", remedy=_again(path))
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise BadCheckpoint(
            f"{path} cannot be read: {error.strerror or error}.",
            remedy="Check the file's permissions and the disk.",
        ) from error
    if len(data) > max_bytes:
        raise BadCheckpoint(
            f"{path} is larger than {max_bytes:,} bytes, more than any real one.",
            remedy=_again(path),
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadCheckpoint(f"{path}, line {line}: not UTF-8 text.", remedy=_again(path)) from None


def _again(path: Path) -> str:
    return f"Correct {path.name}, or take it again from where the model was published."
