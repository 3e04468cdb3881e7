"""Folders written by PaddleNLP's post-training quantisation (a8w8, a8w8c8, a8w8_fp8).

Format: weights [in, out] under Paddle's names hold the quantised numbers, in the original float
type or as int8 or e4m3; act_scales.json, weight_scales.json hold absolute maxima, which stand for
127 in int8 and 448 in e4m3. A linear without scales has a plain weight. With c8 in the type,
cachekv_scales.json holds those of each head's keys and values, for an int8 cache. With smoothing
of all linears, ``shift_bias`` and ``smooth_weight`` change the input of o_proj and down_proj first,
and their names may have ``.layer`` in them; a norm's ``bias`` shifts the input of the linears after
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.arrays import numpy_dtype, round_to
from qinfer.core.checkpoint.stored_arrays import AGAIN, bad, read_floats
from qinfer.core.errors import BadCheckpoint
from qinfer.core.protocols import StoredTensors
from qinfer.core.specs import hookimpl
from qinfer.core.stored import StoredLinear, StoredWeights
from qinfer.core.types import Array, ModelConfig, PluginInfo, Scheme
from qinfer.plugins.quant.none import plain_scheme
from qinfer.plugins.quant.paddlenlp_scales import BY_ROWS, PaddleScales, cache_scales
from qinfer.plugins.quant.paddlenlp_store import PaddleStore
from qinfer.plugins.quant.stored_format import Shapes, StoredFormat

HELD = ("BF16", "F16", "F32", "I8", "F8_E4M3")
OWN_BIAS = ("q_proj", "k_proj", "v_proj", "c_attn")
"""Linears whose bias is the model's; others have one from shifting."""
NORMS = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}


class PaddleNlp(StoredFormat):
    """INT8 and FP8 with static scales, one for each activation tensor."""

    info = PluginInfo(
        name="paddlenlp",
        kind="quant",
        api="1.2",
        summary="reads folders of PaddleNLP's post-training quantisation",
    )
    methods = ("a8w8", "a8w8c8", "a8w8_fp8", "a8w8c8_fp8")

    @hookimpl
    def open_store(self) -> PaddleStore:
        """What writes this format."""
        return PaddleStore()

    def find(
        self,
        config: ModelConfig,
        said: Mapping[str, Any],
        weights: Shapes,
        checkpoint: StoredTensors,
    ) -> StoredWeights:
        """Every weight with scales, and plain ones that other tensors belong to."""
        form = "float8_e4m3fn" if "fp8" in str(said["quant_type"]) else "int8"
        scales = PaddleScales(checkpoint.folder, form)
        found: dict[str, StoredLinear] = {}
        for name, shape in weights.items():
            linear = _Linear(name, shape, config, checkpoint)
            if linear.weight:
                found |= linear.stored(scales, form)
        is_c8 = "c8" in str(said["quant_type"])
        # Observers leave their own copies of what the JSON files say.
        return StoredWeights(
            linears=found,
            unused=("*_quanter*", "*.dequanter*", "*_scale"),
            kv_cache="int8" if is_c8 else "",
            kv_scales=cache_scales(checkpoint.folder, config) if is_c8 else None,
        )


class _Linear:
    """One linear's tensors."""

    def __init__(
        self, name: str, shape: tuple[int, int], config: ModelConfig, checkpoint: StoredTensors
    ) -> None:
        self.name, self.shape, self.config, self.checkpoint = name, shape, config, checkpoint
        self.module = name.removesuffix(".weight")
        self.weight = self._there("weight")
        self.smooth, self.shift = self._there("smooth_weight"), self._there("shift_bias")
        self.bias = "" if self.module.endswith(OWN_BIAS) else self._there("bias")
        parent, _, kind = self.module.rpartition(".")
        layer, _, block = parent.rpartition(".")
        norm = f"{layer}.{NORMS.get(block, '')}.bias"
        if kind not in BY_ROWS and norm in checkpoint.names():
            self.shift = norm

    def _there(self, part: str) -> str:
        names = self.checkpoint.names()
        choices = (f"{self.module}.{part}", f"{self.module}.layer.{part}")
        return next((name for name in choices if name in names), "")

    def stored(self, scales: PaddleScales, form: str) -> dict[str, StoredLinear]:
        """The linear by its plain name, or nothing where it is a plain weight and no more."""
        weight_scale = scales.weight_scale(self.module, self.shape[0])
        input_scale = scales.input_scale(self.module)
        if (weight_scale is None) != (input_scale is None):
            has, lacks = ("weights", "input") if input_scale is None else ("input", "weights")
            raise BadCheckpoint(
                f"{self.checkpoint.folder}: {self.module} has a scale for its {has} and none for "
                f"its {lacks}.",
                remedy=AGAIN,
            )
        extras = {"smooth": self.smooth, "shift": self.shift, "bias": self.bias}
        extras = {key: name for key, name in extras.items() if name}
        if weight_scale is None and not extras and self.weight == self.name:
            return {}
        self._check()
        scheme = plain_scheme(self.config)
        if weight_scale is not None:
            scheme = Scheme(
                name="a8w8" if form == "int8" else "fp8",
                weight_dtype=form,
                weight_scale="channel",
                input_dtype=form,
                input_scale="tensor",
            )

        def load() -> dict[str, Array]:
            arrays: dict[str, Array] = {"weight": self._values(scheme)}
            if weight_scale is not None:
                arrays |= {"scale": weight_scale, "input_scale": input_scale}
            for key, name in extras.items():
                size = self.shape[0] if key == "bias" else self.shape[1]
                arrays[key] = read_floats(self.checkpoint, name, size, scales=False)
            return arrays

        tensors = (self.weight, *extras.values())
        stored = StoredLinear(scheme=scheme, shape=self.shape, tensors=tensors, load=load)
        return {self.name: stored}

    def _check(self) -> None:
        found, dtype = self.checkpoint.shape(self.weight), self.checkpoint.dtype(self.weight)
        if dtype not in HELD:
            raise bad(self.checkpoint, self.weight, f"is {dtype}, not one of {', '.join(HELD)}")
        if found != self.shape[::-1]:
            raise bad(
                self.checkpoint, self.weight, f"is {list(found)}, not {list(self.shape[::-1])}"
            )

    def _values(self, scheme: Scheme) -> NDArray[Any]:
        """The weight [out, in] in the type it stands for, which must hold it exactly."""
        held = np.ascontiguousarray(self.checkpoint.read(self.weight).T)
        if scheme.input_scale == "none":
            return round_to(held, scheme.weight_dtype, self.name)
        target = numpy_dtype(scheme.weight_dtype)
        if held.dtype == target:
            return held
        floats = held.astype(np.float32)
        top = 128 if scheme.weight_dtype == "int8" else 448
        if not (np.abs(floats) <= top).all():
            raise bad(self.checkpoint, self.weight, f"holds numbers beyond {top}")
        values = floats.astype(target)
        if not np.array_equal(values.astype(np.float32), floats):
            what = "integers" if scheme.weight_dtype == "int8" else "e4m3 numbers"
            raise bad(self.checkpoint, self.weight, f"has scales, and its numbers are no {what}")
        return values
