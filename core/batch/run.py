"""Runs a JSONL file of prompts: a result line for every input line, whatever happens to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qinfer.core.batch.journal import Journal, encode_line
from qinfer.core.batch.lines import (
    BatchSettings,
    Prompt,
    line_params,
    line_prompt,
    parse_line,
    read_lines,
)
from qinfer.core.errors import BadInput, QinferError, UsageError
from qinfer.core.params import SamplingParams

if TYPE_CHECKING:
    from qinfer.core.llm import LLM
    from qinfer.core.outputs import RequestOutput


class Batch:
    """A batch ready to run; making one checks the files and resumes what is there.

    output: a path, or an open binary file to write lines to as they finish. ``fingerprint`` is
    whatever else decides the results (model, plugins, …): a partial output made with another one
    isn't continued. ``total`` counts the lines, ``done`` and ``failed`` those finished.

    An output line has the input's fields and "index" (the input line, from 0), "output" (text,
    or a list if n > 1), "finish_reason", "usage" and, where asked for, "logprobs"; or "error".
    """

    def __init__(
        self,
        source: Path,
        output: Path | IO[bytes],
        settings: BatchSettings,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        restart: bool = False,
    ) -> None:
        self._source, self._settings = source, settings
        digest, self.total = _scan(source)
        self.failed = self.done = 0
        self.journal: Journal | None = None
        self._stream: IO[bytes] | None = None
        if not isinstance(output, Path):
            self._stream = output
            return
        _check_output(output, source)
        header = {"input_sha256": digest, "settings": _settings(settings, fingerprint or {})}
        where = output.resolve() if output.is_symlink() else output  # the link stays one
        self.journal = Journal(where, header, restart=restart)
        self.done, self.failed = len(self.journal.finished), self.journal.failed

    def run(self, llm: LLM, progress: Callable[[int], None] = lambda count: None) -> int:
        """Run what isn't done yet and write the output. Returns how many lines failed.

        ``progress`` is called with the number of finished lines. An error of a line becomes its
        output; any other leaves with the finished lines kept for the next run.
        """
        places: list[tuple[int, dict[str, Any]] | None] = []
        params: list[SamplingParams] = []  # grows with the prompts that are taken
        progress(self.done)
        for place, result in llm.as_completed(self._prompts(places, params, progress), params):
            index, fields = places[place] or (place, {})
            places[place] = None
            self._write({**fields, "index": index, **_result(result)}, progress)
        if self.journal is not None:
            self.journal.publish()
        return self.failed

    def close(self) -> None:
        """Close the files. What isn't published stays for the next run."""
        if self.journal is not None:
            self.journal.close()

    def _prompts(
        self,
        places: list[tuple[int, dict[str, Any]] | None],
        params: list[SamplingParams],
        progress: Callable[[int], None],
    ) -> Iterator[Prompt]:
        """The prompts still to run, their line and fields noted in ``places``."""
        finished = self.journal.finished if self.journal else {}
        with self._source.open("rb") as file:
            for index, line in enumerate(read_lines(file)):
                if line == b"" or index in finished:
                    continue
                fields: dict[str, Any] = {}
                try:
                    fields = parse_line(line)
                    prompt = line_prompt(fields, self._settings)
                    chosen = line_params(fields, self._settings)
                except BadInput as error:
                    self._write({**fields, "index": index, **_error(error)}, progress)
                    continue
                places.append((index, fields))
                params.append(chosen)
                yield prompt

    def _write(self, record: dict[str, Any], progress: Callable[[int], None]) -> None:
        if self.journal is not None:
            self.journal.append(record)
        elif self._stream is not None:
            self._stream.write(encode_line(record))
            self._stream.flush()
        self.done += 1
        self.failed += "error" in record
        progress(self.done)


def _check_output(output: Path, source: Path) -> None:
    """Raise UsageError for what must not be replaced by a file: the input, a folder, a device."""
    if not output.exists():
        return
    if not output.is_file():
        raise UsageError(
            f"{output} is no file",
            remedy="Give --output the path of a file, or - for standard output.",
        )
    if output.samefile(source):
        raise UsageError(f"{output} is both input and output")


def _scan(source: Path) -> tuple[str, int]:
    """The input's SHA-256, and its number of lines that aren't blank."""
    digest = hashlib.sha256()
    try:
        if not source.is_file():
            raise BadInput(
                f"{source} is not a file" if source.exists() else f"{source} does not exist",
                remedy="--input takes a file with one JSON object a line.",
            )
        with source.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
            file.seek(0)
            total = sum(line != b"" for line in read_lines(file))
    except OSError as error:
        raise BadInput(f"cannot read {source}: {error.strerror}") from None
    return digest.hexdigest(), total


def _settings(settings: BatchSettings, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the results, as JSON gives it back."""
    params = dict(vars(settings.params))
    params["logit_bias"] = {str(token): bias for token, bias in params["logit_bias"].items()}
    params = {name: list(v) if isinstance(v, tuple) else v for name, v in params.items()}
    return {**fingerprint, **params, "system": settings.system, "raw": settings.raw}


def _result(result: RequestOutput | QinferError) -> dict[str, Any]:
    if isinstance(result, QinferError):
        return _error(result)
    completions = result.completions
    names = {"output": "text", "finish_reason": "finish_reason", "logprobs": "logprobs"}
    columns: dict[str, Any] = {}
    for target, name in names.items():
        values = [completion.to_json().get(name) for completion in completions]
        columns[target] = values if len(values) > 1 else values[0]
    if completions[0].logprobs is None:
        del columns["logprobs"]
    return {**columns, "usage": result.usage.to_json()}


def _error(error: QinferError) -> dict[str, Any]:
    return {"error": {"type": type(error).__name__, "message": error.message}}
