"""Writing the compressed-tensors format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.errors import Unsupported
from qinfer.core.types import Array, Scheme


class CompressedStore:
    """Tensors and quantization_config as vLLM and transformers read them."""

    layout, metadata, vectors = "huggingface", "pt", False

    def linear(self, name: str, scheme: Scheme, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Integers packed into words where only weights are quantised, else as they are."""
        if {"smooth", "shift", "order", "zero"} & arrays.keys():
            raise Unsupported(f"{name}: compressed-tensors cannot hold what scales an input")
        module = name.removesuffix(".weight")
        weight, scale = np.asarray(arrays["weight"]), np.asarray(arrays["scale"])
        tensors: dict[str, Array] = {f"{module}.weight_scale": scale.reshape(len(weight), -1)}
        if _form(scheme) == "pack-quantized":
            bits = int(scheme.weight_dtype[-1])
            tensors[f"{module}.weight_packed"] = pack(weight, bits)
            tensors[f"{module}.weight_shape"] = np.array(weight.shape, np.int64)
        else:
            tensors[f"{module}.weight"] = weight
        if "input_scale" in arrays:
            tensors[f"{module}.input_scale"] = np.asarray(arrays["input_scale"])
        return tensors

    def files(
        self,
        raw: Mapping[str, Any],
        linears: Mapping[str, tuple[Scheme, Mapping[str, Array]]],
        plain: Sequence[str],
    ) -> dict[str, Any]:
        """config.json with one group of all quantised linears, the others ignored by name."""
        (scheme,) = {scheme for scheme, _ in linears.values()}
        ignored = {name.removesuffix(".weight") for name in plain} | {"lm_head"}
        said = {
            "quant_method": "compressed-tensors",
            "format": _form(scheme),
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": sorted(ignored),
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": _weights(scheme),
                    "input_activations": _inputs(scheme),
                    "output_activations": None,
                }
            },
        }
        return {"config.json": {**raw, "quantization_config": said}}


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Codes around 0 [out, in] as 32-bit words, each counted from 0 and the first in the lowest
    bits.
    """
    count = 32 // bits
    raised = codes.astype(np.int16) + np.int16(1 << (bits - 1))
    padded = np.pad(raised, ((0, 0), (0, -codes.shape[1] % count)))
    in_words = padded.astype(np.uint32).reshape(len(codes), -1, count)
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    words = (in_words << shifts).sum(axis=2, dtype=np.uint32)
    return np.ascontiguousarray(words).view(np.int32)


def _form(scheme: Scheme) -> str:
    if scheme.input_scale == "none":
        return "pack-quantized"
    return "float-quantized" if "float8" in scheme.weight_dtype else "int-quantized"


def _args(dtype: str) -> dict[str, Any]:
    kind, bits = ("float", 8) if "float8" in dtype else ("int", int(dtype[-1]))
    return {"num_bits": bits, "type": kind, "symmetric": True}


def _weights(scheme: Scheme) -> dict[str, Any]:
    size = scheme.group_size or None
    return {
        **_args(scheme.weight_dtype),
        "strategy": scheme.weight_scale,
        "group_size": size,
        "dynamic": False,
    }


def _inputs(scheme: Scheme) -> dict[str, Any] | None:
    if scheme.input_scale == "none":
        return None
    return {
        **_args(scheme.input_dtype),
        "strategy": scheme.input_scale,
        "dynamic": scheme.input_scale == "token",
    }
