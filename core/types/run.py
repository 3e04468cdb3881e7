"""What a run is asked for, and the device it computes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """The device a run computes on. Memory in bytes, measured when the run starts."""

    kind: str
    index: int = 0
    name: str = ""
    memory_total: int = 0
    memory_free: int = 0
    features: frozenset[str] = frozenset()
    compute_dtypes: tuple[str, ...] = ("float32",)

    @property
    def label(self) -> str:
        """The name it is asked for by: "cpu" or "gpu:N"."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the user asked for, with names resolved. Memory in bytes; a size of 0 is chosen, by the
    device (``core/engine/sizing.py``); the quant scheme "auto" is the checkpoint's own.
    ``operators``: the version of them that an exported model needs, "" where the backend chooses.
    ``random_weights``: drawn, not read from the folder.
    """

    model: str = ""
    plugin: str = ""
    quant: str = "auto"
    backend: str = "dynamic"
    observers: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    kv_cache_memory: int = 0
    kv_cache_dtype: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 0
    max_batch_tokens: int = 0
    block_size: int = 0
    require_kernels: bool = False
    operators: str = ""
    random_weights: bool = False
