"""Folders written by PaddleNLP's post-training quantisation (a8w8, a8w8c8, a8w8_fp8).

Format: weights [in, out] under Paddle's names hold the quantised numbers, in the original float
type or as int8 or e4m3; act_scales.json, weight_scales.json hold absolute maxima, which stand for
127 in int8 and 448 in e4m3. A linear without scales has a plain weight. With smoothing of all
linears, ``shift_bias`` and ``smooth_weight`` change the input of o_proj and down_proj first, and
their names may have ``.layer`` in them; a norm's ``bias`` shifts the input of the linears after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.arrays import numpy_dtype, round_to
from qinfer.core.checkpoint.json_file import read_json
from qinfer.core.checkpoint.stored_arrays import AGAIN, bad, check_floats, read_floats
from qinfer.core.errors import BadCheckpoint, Unsupported
from qinfer.core.protocols import StoredTensors
from qinfer.core.specs import hookimpl
from qinfer.core.stored import StoredLinear, StoredWeights
from qinfer.core.types import Array, ModelConfig, PluginInfo, Scheme
from qinfer.plugins.quant.none import plain_scheme
from qinfer.plugins.quant.paddlenlp_store import PaddleStore
from qinfer.plugins.quant.stored_format import Shapes, StoredFormat

MAX_BYTES = 256 * 2**20
HELD = ("BF16", "F16", "F32", "I8", "F8_E4M3")
BY_ROWS = ("o_proj", "down_proj")
"""Split by inputs where several cards share a layer; the others are split by outputs."""
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
        scales = _Scales(checkpoint.folder, form)
        found: dict[str, StoredLinear] = {}
        for name, shape in weights.items():
            linear = _Linear(name, shape, config, checkpoint)
            if linear.weight:
                found |= linear.stored(scales, form)
        # Observers leave their own copies of what the JSON files say.
        return StoredWeights(
            linears=found,
            unused=("*_quanter*", "*.dequanter*", "*_scale"),
            kv_cache="int8" if "c8" in str(said["quant_type"]) else "",
        )


class _Scales:
    """The JSON files of scales, of one card or several."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.top = folder, 127.0 if form == "int8" else 448.0
        self._act, self._weight = self._files("act_scales"), self._files("weight_scales")

    def _files(self, stem: str) -> list[dict[str, Any]]:
        single = self.folder / f"{stem}.json"
        ranks = sorted(self.folder.glob(f"{stem}_*.json"), key=lambda p: (len(p.name), p.name))
        paths = [single] if single.exists() else ranks
        if not paths:
            raise BadCheckpoint(
                f"{self.folder} is quantised by PaddleNLP and holds no {stem}.json.",
                remedy="Copy the scale files beside the weights.",
            )
        return [read_json(path, MAX_BYTES) for path in paths]

    def input_scale(self, module: str) -> NDArray[np.float32] | None:
        """[1], or None for a linear without."""
        found = self._find(self._act, module, "activation_quanter")
        if not found:
            return None
        if any(len(part) != 1 or part[0] != found[0][0] for part in found):
            raise Unsupported(
                f"act_scales: {module} has {[len(part) for part in found]} scales that differ",
                remedy="Calibrate on one card, with a scale for each whole activation tensor.",
            )
        scale: NDArray[np.float32] = np.maximum(found[0] / self.top, 1e-30).astype(np.float32)
        return scale

    def weight_scale(self, module: str, out: int) -> NDArray[np.float32] | None:
        """[out], or None for a linear without."""
        found = self._find(self._weight, module, "weight_quanter")
        if not found:
            return None
        if len(found) > 1 and module.endswith(BY_ROWS):
            if any(not np.array_equal(part, found[0]) for part in found):
                raise Unsupported(
                    f"weight_scales: {module} has other scales on each card, by inputs",
                    remedy="Calibrate on one card.",
                )
            found = found[:1]
        scale = np.concatenate(found)
        if len(scale) == 1:
            scale = np.repeat(scale, out)
        if len(scale) != out:
            raise BadCheckpoint(
                f"{self.folder}/weight_scales: {module} has {len(scale)} scales where {out} are "
                "needed.",
                remedy=AGAIN,
            )
        return (scale / self.top).astype(np.float32)

    def _find(
        self, files: list[dict[str, Any]], module: str, what: str
    ) -> list[NDArray[np.float64]]:
        found = []
        for scales in files:
            for key in (f"{module}.{what}", f"{module}.layer.{what}"):
                if key in scales:
                    found.append(self._floats(scales[key], key))
                    break
        return found

    def _floats(self, value: Any, key: str) -> NDArray[np.float64]:
        try:
            array = np.asarray(value, np.float64).reshape(-1)
        except (TypeError, ValueError):
            array = np.full(1, np.nan)
        check_floats(array, True, f"{self.folder}: the scale of {key}")
        return array


class _Linear:
    """One linear's tensors."""

    def __init__(
        self, name: str, shape: tuple[int, int], config: ModelConfig, checkpoint: StoredTensors
    ) -> None:
        self.name, self.shape, self.config, self.checkpoint = name, shape, config, checkpoint
        self.module = name.removesuffix(".weight")
        self.weight = self._there("weight")
        self.smooth, self.shift = self._there("smooth_weight"), self._there("shift_bias")
        # The biases of q, k and v are the model's own; others come from shifting.
        self.bias = (
            "" if self.module[-6:] in ("q_proj", "k_proj", "v_proj") else self._there("bias")
        )
        parent, _, kind = self.module.rpartition(".")
        layer, _, block = parent.rpartition(".")
        norm = f"{layer}.{NORMS.get(block, '')}.bias"
        if kind not in BY_ROWS and norm in checkpoint.names():
            self.shift = norm

    def _there(self, part: str) -> str:
        names = self.checkpoint.names()
        choices = (f"{self.module}.{part}", f"{self.module}.layer.{part}")
        return next((name for name in choices if name in names), "")

    def stored(self, scales: _Scales, form: str) -> dict[str, StoredLinear]:
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
