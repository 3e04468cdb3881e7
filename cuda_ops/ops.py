"""All operators in one namespace: ``from qinfer.cuda_ops import ops``."""

from qinfer.cuda_ops.attention import paged_attention, rotary_kv_write
from qinfer.cuda_ops.elementwise import embed, silu_gate, take_rows, to_float32
from qinfer.cuda_ops.experts import (
    arrange_experts,
    arrange_experts_int4,
    expert_linear,
    expert_linear_fp8,
    expert_linear_int4,
    expert_linear_int8,
    mix_experts,
    route,
)
from qinfer.cuda_ops.linear import (
    arrange,
    arrange_int4,
    linear,
    linear_fp8,
    linear_int4,
    linear_int8,
    nbytes,
)
from qinfer.cuda_ops.norm import add_rms_norm, rms_norm
from qinfer.cuda_ops.sampling import argmax, choose_tokens, edit_logits, sample, token_logprobs

__all__ = [
    "add_rms_norm",
    "argmax",
    "arrange",
    "arrange_experts",
    "arrange_experts_int4",
    "arrange_int4",
    "choose_tokens",
    "edit_logits",
    "embed",
    "expert_linear",
    "expert_linear_fp8",
    "expert_linear_int4",
    "expert_linear_int8",
    "linear",
    "linear_fp8",
    "linear_int4",
    "linear_int8",
    "mix_experts",
    "nbytes",
    "paged_attention",
    "rms_norm",
    "rotary_kv_write",
    "route",
    "sample",
    "silu_gate",
    "take_rows",
    "to_float32",
    "token_logprobs",
]
