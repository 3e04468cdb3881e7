"""A decoder of a published configuration with random weights, made on the card: no download."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import paddle

from qinfer.core.hardware.place import place
from qinfer.core.types import DeviceInfo, LinearSpec, ModelConfig, Scheme
from qinfer.plugins.models.qwen2 import Qwen2
from qinfer.plugins.quant.a8w8 import A8W8
from qinfer.plugins.quant.fp8 import Fp8
from qinfer.plugins.quant.none import Unquantised
from qinfer.plugins.quant.wint4 import WInt4
from qinfer.plugins.quant.wint8 import WInt8

SCHEMES: dict[str, Any] = {
    "none": Unquantised,
    "wint8": WInt8,
    "wint4": WInt4,
    "fp8": Fp8,
    "a8w8": A8W8,
}

SIZES = {
    "qwen2-0.5b": (896, 4864, 24, 14, 2, 64, 151936),
    "qwen2-1.5b": (1536, 8960, 28, 12, 2, 128, 151936),
    "qwen2-7b": (3584, 18944, 28, 28, 4, 128, 152064),
}
"""hidden, intermediate, layers, heads, KV heads, head size, vocabulary: their config.json."""


def config_of(name: str, positions: int = 32768) -> ModelConfig:
    hidden, inter, layers, heads, kv_heads, dim, vocabulary = SIZES[name]
    return ModelConfig(
        model_type="qwen2",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inter,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        max_position_embeddings=positions,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=name != "qwen2-7b",
        dtype="bfloat16",
        compute_dtype="bfloat16",
    )


class RandomParts:
    """``ModelParts`` of random numbers: windows on one block of them, so making is quick."""

    def __init__(self, config: ModelConfig, quant: str, seed: int = 0) -> None:
        self.config, self.scheme = config, SCHEMES[quant]()
        device = DeviceInfo(kind="gpu")
        layers = Qwen2().linear_layers(config)
        self.plan = self.scheme.plan_quant(config, layers, device)
        self.rng = np.random.default_rng(seed)
        self.bytes = 0
        self.noise = self.rng.normal(size=1 << 22).astype(np.float32) * 0.02
        self.blocks: dict[str, np.ndarray[Any, Any]] = {}

    def linear(self, spec: LinearSpec) -> Any:
        scheme = self.plan.by_layer[spec.name]
        shape = (spec.out_features, spec.in_features)
        params = {"weight": place(self._numbers(shape, scheme.weight_dtype))}
        if scheme.weight_scale == "channel":
            params["scale"] = place(np.full(shape[0], self._unit(scheme), np.float32))
        if scheme.weight_scale == "group":
            groups = (shape[0], shape[1] // scheme.group_size)
            params["scale"] = place(np.full(groups, self._unit(scheme), np.float32))
        if spec.bias:
            params["bias"] = self.parameter(f"{spec.name}.bias", shape=(shape[0],))
        layer = self.scheme.build_linear(spec, scheme, params)
        self.bytes += layer.nbytes
        return layer

    def parameter(self, name: str, dtype: str = "", shape: tuple[int, ...] | None = None) -> Any:
        if shape is None:
            embedding = (self.config.vocab_size, self.config.hidden_size)
            shape = embedding if name.startswith("embed") else (self.config.hidden_size,)
        numbers = self._numbers(shape, "bfloat16")
        if "norm" in name:
            numbers = (numbers.astype(np.float32) + 1).astype(ml_dtypes.bfloat16)
        return place(numbers)

    def constant(self, array: Any, dtype: str = "") -> Any:
        return place(array, dtype or self.config.compute_dtype)

    def _unit(self, scheme: Scheme) -> float:
        """The scale that gives weights of the usual size."""
        return 0.02 / {"int8": 70, "int4": 4, "float8_e4m3fn": 100}[scheme.weight_dtype]

    def _numbers(self, shape: tuple[int, ...], dtype: str) -> Any:
        if dtype not in self.blocks:
            self.blocks[dtype] = self._block(dtype)
        block = self.blocks[dtype]
        count = int(np.prod(shape))
        start = int(self.rng.integers(0, 1 << 16)) * 16
        whole = np.resize(block, (count + start,) if count < block.size else (count,))
        return np.ascontiguousarray(whole[-count:]).reshape(shape)

    def _block(self, dtype: str) -> Any:
        if dtype == "int8":
            return self.rng.integers(-127, 128, 1 << 22).astype(np.int8)
        if dtype == "int4":
            return self.rng.integers(-7, 8, 1 << 22).astype(np.int8)
        if dtype == "float8_e4m3fn":
            return (self.noise * 5000).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
        return self.noise.astype(getattr(ml_dtypes, dtype, dtype))


def random_model(name: str, quant: str) -> tuple[Any, ModelConfig, int]:
    """The model, its configuration, and the bytes its linears read in each step."""
    config = config_of(name)
    parts = RandomParts(config, quant)
    with paddle.no_grad():
        model = Qwen2().build_model(config, parts)
    return model, config, parts.bytes
