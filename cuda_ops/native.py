"""The CPU versions of the operators: C++ kernels behind the contracts of the table."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import paddle
from paddle import Tensor

from qinfer.core.errors import Unsupported
from qinfer.core.types import LayerCache
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.build import build, plan_build
from qinfer.cuda_ops.record import Recorder, set_recorder
from qinfer.cuda_ops.table import REFERENCE, use

CPU = "cpu"
CHOICE = "QINFER_OPERATORS"
"""Environment variable: "reference" keeps the native operators out (to compare, to debug)."""

FORMATS = {"float32": 0, "float16": 0, "bfloat16": 1, "int8": 2, "float8_e4m3fn": 3, "int4": 4}
"""Weight dtype -> number of the packed format, as csrc/cpu/linear.h counts them. A float16 weight
is held as float32, which is exact."""

PANEL = 16
"""Outputs that make whole panels of a packed weight, whatever a panel's size here."""

_loaded: set[Path] = set()


def use_native(*, require: bool, progress: Callable[[str], None]) -> str:
    """Switch the table to the native CPU operators, compiling them if need be.

    Returns a line saying what is used. Without a compiler, or if it fails, that is the reference,
    and ``progress`` is told why; with ``require`` the reason is raised as Unsupported.
    """
    set_recorder(None)
    if os.environ.get(CHOICE) == REFERENCE and not require:
        use(REFERENCE)
        return f"operators: reference ({CHOICE} says so)"
    try:
        library = build(plan_build(), progress)
        load(library)
    except Unsupported as error:
        if require:
            raise
        use(REFERENCE)
        progress(f"Using the slow reference operators: {error.message.splitlines()[0]}")
        return "operators: reference"
    use(CPU)
    set_recorder(Recorder(library))
    return "operators: native, compiled for this processor"


def load(library: Path) -> None:
    """Register a built library's operators with Paddle and enter them into the table."""
    if library in _loaded:
        return
    from paddle.utils.cpp_extension.extension_utils import load_op_meta_info_and_register_op

    try:
        load_op_meta_info_and_register_op(str(library))
    except (OSError, RuntimeError) as error:  # a cache mounted noexec, another Paddle's symbols
        raise Unsupported(
            f"the native operators do not load: {error}",
            remedy="Set QINFER_CACHE to a folder programs may run from, or qinfer build-ops "
            "--force.",
        ) from error
    _loaded.add(library)
    ops.arrange.versions[CPU] = _arrange
    ops.linear.versions[CPU] = _linear
    ops.linear_int8.versions[CPU] = _linear_int8
    ops.linear_fp8.versions[CPU] = _linear_fp8
    ops.arrange_a8w8.versions[CPU] = _arrange_a8w8
    ops.linear_a8w8.versions[CPU] = _linear_a8w8
    ops.arrange_int4.versions[CPU] = _arrange_int4
    ops.linear_int4.versions[CPU] = _linear_int4
    ops.rotary_kv_write.versions[CPU] = _rotary_kv_write
    ops.paged_attention.versions[CPU] = _paged_attention
    ops.silu_gate.versions[CPU] = _silu_gate
    ops.rms_norm.versions[CPU] = _rms_norm
    ops.add_rms_norm.versions[CPU] = _add_rms_norm
    ops.embed.versions[CPU] = _embed
    ops.take_rows.versions[CPU] = _take_rows
    ops.to_float32.versions[CPU] = _to_float32
    ops.argmax.versions[CPU] = _argmax
    ops.sample.versions[CPU] = _sample
    ops.route.versions[CPU] = _route
    ops.mix_experts.versions[CPU] = _mix_experts
    ops.arrange_experts.versions[CPU] = _arrange_experts
    ops.arrange_experts_int4.versions[CPU] = _arrange_experts_int4
    ops.expert_linear.versions[CPU] = _expert_linear
    ops.expert_linear_int8.versions[CPU] = _expert_linear_int8
    ops.expert_linear_fp8.versions[CPU] = _expert_linear_fp8
    ops.expert_linear_int4.versions[CPU] = _expert_linear_int4


def lanes(library: Path) -> int:
    """Floats in a register of the processor a library was compiled for.

    So many outputs make a panel of a packed weight, and so many keys lie side by side in the cache.
    """
    return int(ctypes.CDLL(str(library)).qinfer_lanes())


_run = paddle._C_ops._run_custom_op


def _arrange(weight: Tensor, dtype: str) -> Tensor:
    """Panels of outputs (csrc/cpu/panels.h), as bytes."""
    if weight.dtype == paddle.float16:
        weight = weight.astype("float32")
    return _run("qinfer_pack", weight, FORMATS[str(weight.dtype).removeprefix("paddle.")])[0]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: str, out: int) -> Tensor:
    return _run("qinfer_linear", x, weight, None, bias, FORMATS[dtype], out)[0]


def _linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    out = scale.shape[0]
    return _run("qinfer_linear", x, weight, scale, bias, FORMATS["int8"], out)[0]


def _linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    out = scale.shape[0]
    return _run("qinfer_linear", x, weight, scale, bias, FORMATS["float8_e4m3fn"], out)[0]


def _arrange_a8w8(weight: Tensor) -> Tensor:
    return _run("qinfer_pack", weight, FORMATS["int8"])[0]


def _linear_a8w8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> Tensor:
    return _run("qinfer_linear_a8w8", x, weight, scale, bias, input_scale)[0]


def _arrange_int4(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Panels with two weights a byte, and their scales in the order of those."""
    packed = _run("qinfer_pack", weight, FORMATS["int4"])[0]
    return packed, _run("qinfer_pack_scales", scale)[0]


def _linear_int4(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: int) -> Tensor:
    return _run("qinfer_linear", x, weight, scale, bias, FORMATS["int4"], out)[0]


def _rotary_kv_write(
    qkv: Tensor,
    rotary: Tensor,
    positions: Tensor,
    cache: LayerCache,
    slot_mapping: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    query_scale: Tensor | None = None,
) -> Tensor:
    if not _fits(cache):
        reference = ops.rotary_kv_write.versions[REFERENCE]
        optional = (q_norm, k_norm, eps, query_scale)
        return reference(qkv, rotary, positions, cache, slot_mapping, *optional)
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    inputs = (qkv, rotary, positions, slot_mapping, *parts, q_norm, k_norm, query_scale)
    return _run("qinfer_rotary_kv_write", *inputs, eps)[0]


def _paged_attention(
    queries: Tensor,
    cache: LayerCache,
    query_starts: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    numbers = (query_starts, seq_lens, block_tables)
    if not _fits(cache):
        reference = ops.paged_attention.versions[REFERENCE]
        return reference(queries, cache, *numbers, scale, window)
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    return _run("qinfer_paged_attention", queries, *parts, *numbers, scale, window)[0]


def _fits(cache: LayerCache) -> bool:
    """Whether the kernels, which work in vectors of 16, can use this cache (they then keep keys in
    an order of their own in it).
    """
    _, block_size, _, dim = cache.keys.shape
    return bool(block_size % 16 == 0 and dim % 16 == 0 and cache.keys.dtype != paddle.float16)


def _silu_gate(x: Tensor) -> Tensor:
    return _run("qinfer_silu_gate", x)[0]


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _run("qinfer_rms_norm", x, None, weight, eps)[0]


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed, total = _run("qinfer_rms_norm", x, residual, weight, eps)
    return normed, total


def _embed(token_ids: Tensor, table: Tensor, dtype: str) -> Tensor:
    return _run("qinfer_gather_rows", table, token_ids)[0]


def _take_rows(x: Tensor, rows: Tensor) -> Tensor:
    return _run("qinfer_gather_rows", x, rows)[0]


def _to_float32(x: Tensor) -> Tensor:
    return x if x.dtype == paddle.float32 else x.astype("float32")


def _argmax(logits: Tensor) -> Tensor:
    return _run("qinfer_argmax", logits)[0]


def _sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    shortlist: int,
) -> Tensor:
    return _run("qinfer_sample", logits, temperature, top_k, top_p, min_p, uniform)[0]


def _route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    weights, experts = _run("qinfer_route", logits, top_k, normalise)
    return weights, experts


def _mix_experts(
    routed: Tensor, weights: Tensor, shared: Tensor | None, gate: Tensor | None
) -> Tensor:
    return _run("qinfer_mix_experts", routed, weights, shared, gate)[0]


def _arrange_experts(weight: Tensor, experts: int, dtype: str) -> Tensor:
    """As one weight: an expert whose outputs make whole panels begins where a panel does."""
    if weight.shape[0] // experts % PANEL:
        return ops.arrange_experts.versions[REFERENCE](weight, experts, dtype)
    return _arrange(weight, dtype)


def _arrange_experts_int4(weight: Tensor, scale: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    if weight.shape[0] // experts % PANEL:
        return ops.arrange_experts_int4.versions[REFERENCE](weight, scale, experts)
    return _arrange_int4(weight, scale)


def _expert_linear(x: Tensor, weight: Tensor, experts: Tensor, dtype: str, out: int) -> Tensor:
    if out % PANEL:
        return ops.expert_linear.versions[REFERENCE](x, weight, experts, dtype, out)
    return _run("qinfer_expert_linear", x, weight, None, experts, FORMATS[dtype], out)[0]


def _expert_linear_int8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    if out % PANEL:
        return ops.expert_linear_int8.versions[REFERENCE](x, weight, scale, experts, out)
    return _run("qinfer_expert_linear", x, weight, scale, experts, FORMATS["int8"], out)[0]


def _expert_linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    if out % PANEL:
        return ops.expert_linear_fp8.versions[REFERENCE](x, weight, scale, experts, out)
    return _run("qinfer_expert_linear", x, weight, scale, experts, FORMATS["float8_e4m3fn"], out)[0]


def _expert_linear_int4(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    if out % PANEL:
        return ops.expert_linear_int4.versions[REFERENCE](x, weight, scale, experts, out)
    return _run("qinfer_expert_linear", x, weight, scale, experts, FORMATS["int4"], out)[0]
