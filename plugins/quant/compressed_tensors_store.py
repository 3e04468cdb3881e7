"""Writing the compressed-tensors format."""

from __future__ import annotations

import json
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
        if {"smooth", "shift", "order"} & arrays.keys():
            raise Unsupported(f"{name}: compressed-tensors cannot hold what scales an input")
        module = name.removesuffix(".weight")
        weight, scale = np.asarray(arrays["weight"]), np.asarray(arrays["scale"])
        tensors: dict[str, Array] = {f"{module}.weight_scale": scale.reshape(len(weight), -1)}
        if _form(scheme) == "pack-quantized":
            bits = int(scheme.weight_dtype[-1])
            tensors[f"{module}.weight_packed"] = pack(weight, bits)
            tensors[f"{module}.weight_shape"] = np.array(weight.shape, np.int64)
            if "zero" in arrays:  # packed along the outputs
                zero = np.asarray(arrays["zero"]).astype(np.int8)
                words = pack(np.ascontiguousarray(zero.T), bits)
                tensors[f"{module}.weight_zero_point"] = np.ascontiguousarray(words.T)
        else:
            tensors[f"{module}.weight"] = weight
        if "input_scale" in arrays:
            tensors[f"{module}.input_scale"] = np.asarray(arrays["input_scale"])
        return tensors

    def cache(self, attention: str, scales: Array) -> dict[str, Array]:
        """A scale for each head, as the strategy "attn_head" has them."""
        shape = (-1, 1, 1)
        return {
            f"{attention}.{kind}_scale": np.asarray(row).reshape(shape)
            for kind, row in zip("kv", scales, strict=True)
        }

    def files(
        self,
        raw: Mapping[str, Any],
        linears: Mapping[str, tuple[Scheme, Mapping[str, Array]]],
        plain: Sequence[str],
        kv_cache: str,
        kv_scales: Mapping[str, Array],
    ) -> dict[str, Any]:
        """config.json with a group for each way that linears are quantised, the others ignored by
        name.
        """
        groups: dict[str, Any] = {}
        for name, (scheme, arrays) in linears.items():
            own = {
                "weights": _weights(scheme, arrays),
                "input_activations": _inputs(scheme),
                "output_activations": None,
            }
            group = groups.setdefault(json.dumps(own), {"targets": [], **own})
            group["targets"].append(name.removesuffix(".weight"))
        if len(groups) == 1:
            next(iter(groups.values()))["targets"] = ["Linear"]
        scheme = next(iter(linears.values()))[0]
        ignored = {name.removesuffix(".weight") for name in plain} | {"lm_head"}
        said = {
            "quant_method": "compressed-tensors",
            "format": _form(scheme),
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": _cache(kv_cache),
            "ignore": sorted(ignored),
            "config_groups": {f"group_{n}": group for n, group in enumerate(groups.values())},
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


def _cache(dtype: str) -> dict[str, Any] | None:
    return {**_args(dtype), "strategy": "attn_head", "dynamic": False} if dtype else None


def _args(dtype: str) -> dict[str, Any]:
    kind, bits = ("float", 8) if "float8" in dtype else ("int", int(dtype[-1]))
    return {"num_bits": bits, "type": kind, "symmetric": True}


def _weights(scheme: Scheme, arrays: Mapping[str, Array]) -> dict[str, Any]:
    by_group = arrays["scale"].ndim == 2 and arrays["scale"].shape[1] > 1
    return {
        **_args(scheme.weight_dtype),
        "symmetric": "zero" not in arrays,
        "strategy": "group" if by_group else "channel",
        "group_size": scheme.group_size if by_group else None,
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
