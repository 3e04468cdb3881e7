"""Writing the folders of PaddleNLP's post-training quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from qinfer.core.types import Array, Scheme

BY_VECTORS = ("o_proj", "down_proj")
"""What PaddleNLP gives smoothing vectors of their own with shift_smooth_all_linears."""


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

    def files(
        self,
        raw: Mapping[str, Any],
        linears: Mapping[str, tuple[Scheme, Mapping[str, Array]]],
        plain: Sequence[str],
    ) -> dict[str, Any]:
        """config.json, act_scales.json and weight_scales.json, whose scales are absolute maxima."""
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
            weight[f"{key}.weight_quanter"] = listed if form == "int8" else listed[0]
        said = {"quant_type": "a8w8" if form == "int8" else "a8w8_fp8"}
        vectors = {"smooth": True, "shift_smooth_all_linears": True} if form == "int8" else {}
        config = {**raw, "quantization_config": {**said, **vectors}}
        return {"config.json": config, "act_scales.json": act, "weight_scales.json": weight}


def _has_vectors(module: str, scheme: Scheme) -> bool:
    return module.endswith(BY_VECTORS) and scheme.weight_dtype == "int8"
