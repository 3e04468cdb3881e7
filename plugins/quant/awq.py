"""Checkpoints written by AutoAWQ in its "gemm" layout.

Format: for each linear ``qweight`` int32 [in, out / 8], ``qzeros`` int32 [groups, out / 8] and
``scales`` [groups, out]. A word holds eight outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7 from its
lowest four bits up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.checkpoint.stored_arrays import need, read_floats, signed, unpack
from qinfer.core.errors import Unsupported
from qinfer.core.protocols import StoredTensors
from qinfer.core.stored import StoredLinear, StoredWeights
from qinfer.core.types import Array, ModelConfig, PluginInfo, Scheme
from qinfer.plugins.quant.stored_format import Shapes, StoredFormat

BITS, PER_WORD = 4, 8
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each output is: output 1 in the fifth place."""


class Awq(StoredFormat):
    """4-bit weights in groups with zero points."""

    info = PluginInfo(
        name="awq",
        kind="quant",
        api="1.2",
        summary="reads checkpoints of AutoAWQ (gemm layout)",
    )
    methods = ("awq",)

    def find(
        self,
        config: ModelConfig,
        said: Mapping[str, Any],
        weights: Shapes,
        checkpoint: StoredTensors,
    ) -> StoredWeights:
        """Every weight there is a ``qweight`` of."""
        bits = said.get("bits", said.get("w_bit"))
        group = said.get("group_size", said.get("q_group_size"))
        version = str(said.get("version", "gemm")).lower()
        if bits != BITS or not isinstance(group, int) or version != "gemm":
            raise Unsupported(
                f"config.json: AWQ with {bits!r} bits, groups of {group!r}, layout {version!r}",
                remedy="Take a checkpoint of 4 bits in the gemm layout.",
            )
        present = set(checkpoint.names())
        linears = {
            name: _linear(name.removesuffix(".weight"), shape, group, checkpoint)
            for name, shape in weights.items()
            if f"{name.removesuffix('.weight')}.qweight" in present
        }
        return StoredWeights(linears=linears)


def _linear(
    module: str, shape: tuple[int, int], group: int, checkpoint: StoredTensors
) -> StoredLinear:
    out, inputs = shape
    size = inputs if group == -1 else group
    if size < 1 or inputs % size or out % PER_WORD:
        raise Unsupported(
            f"{module}: {inputs} inputs and {out} outputs make no groups of {size} and words of 8",
            remedy="Quantise the model with a group size that divides its layers.",
        )
    groups = inputs // size
    qweight, qzeros, scales = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    need(checkpoint, qweight, ("I32",), (inputs, out // PER_WORD))
    has_zeros = qzeros in checkpoint.names()
    if has_zeros:
        need(checkpoint, qzeros, ("I32",), (groups, out // PER_WORD))

    def load() -> dict[str, Array]:
        arrays: dict[str, Array] = {
            "weight": np.ascontiguousarray(_codes(checkpoint.read(qweight), out).T),
            "scale": read_floats(checkpoint, scales, groups * out).reshape(groups, out).T.copy(),
        }
        if has_zeros:
            zeros = _codes(checkpoint.read(qzeros), out).T
            arrays["zero"] = np.ascontiguousarray(zeros.astype(np.float32))
        return arrays

    scheme = Scheme(name="wint4", weight_dtype="int4", weight_scale="group", group_size=size)
    names = (qweight, scales, qzeros) if has_zeros else (qweight, scales)
    return StoredLinear(scheme=scheme, shape=shape, tensors=names, load=load)


def _codes(words: NDArray[np.int32], out: int) -> NDArray[np.int8]:
    """[rows, out / 8] words as [rows, out] codes around 0."""
    places = unpack(np.ascontiguousarray(words), BITS, out)
    eights = places.reshape(len(places), -1, PER_WORD)[:, :, list(ORDER)]
    return signed(eights.reshape(len(places), out), BITS)
