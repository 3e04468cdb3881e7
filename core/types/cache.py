"""The paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from qinfer.core.types.arrays import Array


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """The paged KV cache: a ``LayerCache`` for each layer.

    ``dtype`` is float32, float16, bfloat16, or int8 or float8_e4m3fn, whose numbers stand for
    themselves times a scale. ``scales``: static ones of keys and values, a numpy array
    [num_layers, 2, num_kv_heads] float32; None for one of each token and head, found on the fly.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "float32"
    block_size: int = 16
    num_blocks: int = 0
    scales: Array | None = field(default=None, compare=False)

    @property
    def is_scaled(self) -> bool:
        """Whether a number stands for itself times a scale."""
        return self.dtype in ("int8", "float8_e4m3fn")

    @property
    def bytes_per_block(self) -> int:
        """Bytes one block takes in all layers, keys and values together."""
        item = {"float32": 4, "bfloat16": 2, "float16": 2}.get(self.dtype, 1)
        row = self.head_dim * item + 4 * (self.is_scaled and self.scales is None)
        return self.num_layers * 2 * self.block_size * self.num_kv_heads * row


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """One layer's keys and values, [num_blocks, block_size, num_kv_heads, head_dim] tensors.

    Scales are float32: [num_blocks, block_size, num_kv_heads], written with the numbers, or static
    ones [num_kv_heads], or None where ``CacheSpec`` has none. The order inside a block belongs to
    the operators that write and read it.
    """

    keys: Array
    values: Array
    key_scales: Array | None = None
    value_scales: Array | None = None
