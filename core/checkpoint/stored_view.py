"""A quantised checkpoint seen as if it held plain weights, so that weight rules fit it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.safetensors_file import TensorEntry
from qinfer.core.stored import StoredLinear

QUANTISED = "quantised"
"""What ``dtype`` says of a quantised weight."""


class StoredView(Checkpoint):
    """``checkpoint`` with each quantised weight in place of the tensors it is made of."""

    def __init__(self, checkpoint: Checkpoint, stored: Mapping[str, StoredLinear]) -> None:
        self.folder = checkpoint.folder
        self._plain, self._stored = checkpoint, stored
        used = {name for linear in stored.values() for name in linear.tensors}
        kept = (name for name in checkpoint.names() if name not in used)
        self._names = tuple(dict.fromkeys((*stored, *kept)))

    def names(self) -> tuple[str, ...]:
        """Every plain tensor's and every quantised weight's name."""
        return self._names

    def stored(self, name: str) -> StoredLinear | None:
        """The quantised weight of that name."""
        return self._stored.get(name)

    def entry(self, name: str) -> TensorEntry:
        """Where a plain tensor lies."""
        return self._plain.entry(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A plain tensor's shape on disk, or [out, in] of a quantised weight."""
        linear = self._stored.get(name)
        return self._plain.shape(name) if linear is None else linear.shape

    def dtype(self, name: str) -> str:
        """A plain tensor's dtype on disk, ``QUANTISED`` for a quantised weight."""
        return QUANTISED if name in self._stored else self._plain.dtype(name)

    def nbytes(self, name: str) -> int:
        """Bytes on disk, of all the tensors a quantised weight is made of."""
        linear = self._stored.get(name)
        names = (name,) if linear is None else linear.tensors
        return sum(self._plain.nbytes(part) for part in names)

    def read(self, name: str) -> NDArray[Any]:
        """A plain tensor."""
        return self._plain.read(name)
