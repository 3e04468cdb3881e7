"""Writing the folders of PaddleNLP's post-training quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from qinfer.core.types import Array, Scheme

BY_VECTORS = ("o_proj", "down_proj", "c_proj")
"""What PaddleNLP gives smoothing vectors of their own with shift_smooth_all_linears; it has none
for experts, which it does not quantise so."""


class PaddleStore:
    """Quantised numbers held in bfloat16, [in, out], under Paddle's names; scales in JSON files."""

    layout, metadata, vectors = "paddle", "np", True

    def linear(self, name: str, scheme: Scheme, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The weight, and for o_proj and down_proj in int8 the vectors that scale its input."""
        weight = np.asarray(arrays["weight"])
        tensors: dict[str, Array] = {name: weight.T.astype(np.float32).astype(ml_dtypes.bfloat16)}
        module = name.removesuffix(".weight")
        if _has_vectors(module, scheme):
            plain = np.ones(weight.shape[1], np.float32)
            tensors[f"{module}.smooth_weight"] = np.asarray(arrays.get("smooth", plain))
            tensors[f"{module}.shift_bias"] = np.zeros_like(plain)
        return tensors

    def cache(self, attention: str, scales: Array) -> dict[str, Array]:
        """None: they are in a JSON file."""
        return {}

    def files(
        self,
        raw: Mapping[str, Any],
        linears: Mapping[str, tuple[Scheme, Mapping[str, Array]]],
        plain: Sequence[str],
        kv_cache: str,
        kv_scales: Mapping[str, Array],
    ) -> dict[str, Any]:
        """config.json, act_scales.json, weight_scales.json and, with an int8 cache,
        cachekv_scales.json; the scales in them are absolute maxima.
        """
        act: dict[str, Any] = {}
        weight: dict[str, Any] = {}
        form = ""
        for name, (scheme, arrays) in linears.items():
            form, top = scheme.weight_dtype, 448.0 if "float8" in scheme.weight_dtype else 127.0
            module = name.removesuffix(".weight")
            key = f"{module}.layer" if _has_vectors(module, scheme) else module
            # A float32 times 127 or 448 is exact in float64, and so is the way back.
            act[f"{key}.activation_quanter"] = float(arrays["input_scale"][0]) * top
            listed = (np.asarray(arrays["scale"], np.float64) * top).tolist()
            one = form != "int8" and len(set(listed)) == 1
            weight[f"{key}.weight_quanter"] = listed[0] if one else listed
        kind = "a8w8c8" if kv_cache else "a8w8"
        said = {"quant_type": kind if form == "int8" else f"{kind}_fp8"}
        vectors = {"smooth": True, "shift_smooth_all_linears": True} if form == "int8" else {}
        config = {**raw, "quantization_config": {**said, **vectors}}
        files = {"config.json": config, "act_scales.json": act, "weight_scales.json": weight}
        if kv_cache:
            files["cachekv_scales.json"] = {
                f"{attention}.cache{kind}_matmul.activation_quanter": (row * 127.0).tolist()
                for attention, scales in kv_scales.items()
                for kind, row in zip("kv", np.asarray(scales, np.float64), strict=True)
            }
        return files


def _has_vectors(module: str, scheme: Scheme) -> bool:
    is_expert = ".experts." in module
    return module.endswith(BY_VECTORS) and scheme.weight_dtype == "int8" and not is_expert
