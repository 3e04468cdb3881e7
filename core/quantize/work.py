"""The folder of a quantisation that is under way: finished layers, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.safetensors_file import write_tensors
from qinfer.core.errors import UsageError
from qinfer.core.quantize.linear import Quantised
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.types import Array, LinearSpec, Scheme

SEPARATOR = "/"
"""Between a linear's name and an array's."""


class WorkFolder:
    """``OUTPUT.partial``: a file for each decoder layer that is done, with its report beside it.

    A layer's file appears in one step when the first linear of the next layer is reached.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.partial")
        self.skipped: dict[str, str] = {}
        self._current: int | None = None
        self._arrays: dict[str, Array] = {}
        self._report: dict[str, Any] = {}
        self._held: tuple[int, Checkpoint | None] = (-1, None)

    def open(self, settings: QuantizeSettings, source: Path, *, restart: bool) -> bool:
        """Make the folder or go on with it; True if something was there.

        Raises UsageError where it was begun with other settings or another checkpoint.
        """
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        path = self.folder / "settings.json"
        said = json.dumps(_fingerprint(settings, source), indent=1, sort_keys=True)
        if path.exists():
            if path.read_text(encoding="utf-8") != said:
                raise UsageError(
                    f"{self.folder} was begun with other settings or another checkpoint",
                    remedy="Repeat that command to continue it, or add --restart to begin anew.",
                )
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, said)
        return False

    def finished(self, spec: LinearSpec) -> dict[str, Array] | None:
        """A linear's arrays from an earlier run, or None."""
        layer = _layer(spec)
        if self._held[0] != layer:
            path = self._file(layer)
            self._held = (layer, _single(path) if path.exists() else None)
        held = self._held[1]
        if held is None:
            return None
        begin = spec.name + SEPARATOR
        arrays = {n.removeprefix(begin): held.read(n) for n in held.names() if n.startswith(begin)}
        return arrays or None

    def add(self, spec: LinearSpec, scheme: Scheme, made: Quantised) -> None:
        """Take a linear in; writes the layer before it if this one begins another."""
        layer = _layer(spec)
        if self._current is not None and layer != self._current:
            self.flush()
        self._current = layer
        for name, array in made.arrays.items():
            self._arrays[f"{spec.name}{SEPARATOR}{name}"] = array
        said = {"scheme": asdict(scheme), "error": made.error}
        few = {"experts": spec.experts, "by_absmax": made.few} if spec.experts else {}
        self._report[spec.name] = said | few

    def skip(self, spec: LinearSpec, why: str) -> None:
        """Note that a linear is not quantised."""
        self.skipped[spec.name] = why

    def flush(self) -> None:
        """Write the layer that is in memory."""
        if self._current is None:
            return
        _write(self._report_file(self._current), json.dumps(self._report, indent=1))
        path = self._file(self._current)
        new = path.with_suffix(".new")
        write_tensors(new, self._arrays)
        _sync(new)
        new.replace(path)
        self._current, self._arrays, self._report = None, {}, {}
        self._held = (-1, None)

    def report(self) -> dict[str, Any]:
        """Scheme and error of every linear that is done."""
        done: dict[str, Any] = {}
        for path in sorted(self.folder.glob("layer-*.json")):
            done |= json.loads(path.read_text(encoding="utf-8"))
        return done

    def remove(self) -> None:
        """Delete the folder: its output is complete."""
        shutil.rmtree(self.folder)

    def _file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"

    def _report_file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.json"


def _layer(spec: LinearSpec) -> int:
    return 99_999 if spec.layer is None else spec.layer


def _single(path: Path) -> Checkpoint:
    """One file as a checkpoint."""
    from qinfer.core.checkpoint.safetensors_file import read_entries

    opened = Checkpoint.__new__(Checkpoint)
    opened.folder, opened._entries = path.parent, read_entries(path)
    return opened


def _fingerprint(settings: QuantizeSettings, source: Path) -> Mapping[str, Any]:
    """What the result depends on: the settings, and which files there are to quantise."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    chosen = {k: str(v) for k, v in asdict(settings).items() if k != "threads"}
    if settings.calib:
        chosen["calib"] = hashlib.sha256(settings.calib.read_bytes()).hexdigest()
    return {"settings": chosen, "source": hashlib.sha256(repr(stats).encode()).hexdigest()}


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
