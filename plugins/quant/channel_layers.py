"""Layers over weights of eight bits with a scale for each output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from qinfer.core.types import Array, LinearSpec
from qinfer.cuda_ops import ops


class ChannelLinear:
    """``(x W) * scale + b`` by ``product``; ``form`` is what ``ops.Held`` calls such a weight."""

    def __init__(
        self, params: Mapping[str, Array], *, product: Callable[..., Array], form: str
    ) -> None:
        self.product = product
        self.weight = ops.arrange(params["weight"], "float32")
        self.scale, self.bias = params["scale"], params.get("bias")
        self.nbytes = ops.nbytes(self.weight, self.scale, self.bias)
        out = self.scale.shape[0]
        self.held = ops.Held(
            format=form, weight=self.weight, scale=self.scale, bias=self.bias, out=out
        )

    def __call__(self, x: Array) -> Array:
        """[T, in] -> [T, out]."""
        return self.product(x, self.weight, self.scale, self.bias)


class ChannelExperts:
    """``(x W) * scale`` by ``product``, with the W of each row's expert."""

    def __init__(
        self, spec: LinearSpec, params: Mapping[str, Array], *, product: Callable[..., Array]
    ) -> None:
        self.product = product
        self.weight = ops.arrange_experts(params["weight"], spec.experts, "float32")
        self.scale, self.out_features = params["scale"], spec.out_features
        self.nbytes = ops.nbytes(self.weight, self.scale)

    def __call__(self, x: Array, experts: Array) -> Array:
        """[T * k or T, in], [T, k] -> [T * k, out]."""
        return self.product(x, self.weight, self.scale, experts, self.out_features)


int8_linear = partial(ChannelLinear, product=ops.linear_int8, form="int8")
int8_experts = partial(ChannelExperts, product=ops.expert_linear_int8)
fp8_linear = partial(ChannelLinear, product=ops.linear_fp8, form="e4m3")
"""e4m3 weights; each row of x is rounded to e4m3 with a scale of its own."""
fp8_experts = partial(ChannelExperts, product=ops.expert_linear_fp8)
