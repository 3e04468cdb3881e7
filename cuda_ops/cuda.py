"""The CUDA versions of the operators: kernels of csrc/cuda behind the contracts of the table.

Activations are bfloat16 or float16. A weight stays [out, in] as it comes, int4 excepted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from qinfer.core.errors import Unsupported
from qinfer.core.types import LayerCache
from qinfer.cuda_ops import cuda_experts, cuda_fused, ops
from qinfer.cuda_ops.cuda_experts import E4M3, INT4, INT8, PLAIN
from qinfer.cuda_ops.record import set_recorder
from qinfer.cuda_ops.table import TABLE, use

CUDA = "cuda"

_loaded: set[Path] = set()
_run = paddle._C_ops._run_custom_op


def use_cuda(library: Path) -> str:
    """Switch the table to the CUDA operators of a built library; returns a line saying so."""
    load_cuda(library)
    set_recorder(None)  # CUDA graphs have a runner of their own
    for name in use(CUDA):
        TABLE[name].run = _refusal(name)
    return "operators: CUDA, compiled for this card"


def load_cuda(library: Path) -> None:
    """Register a built library's operators with Paddle and enter them into the table."""
    if library in _loaded:
        return
    from paddle.utils.cpp_extension.extension_utils import load_op_meta_info_and_register_op

    try:
        load_op_meta_info_and_register_op(str(library))
    except (OSError, RuntimeError) as error:
        raise Unsupported(
            f"the GPU operators do not load: {error}",
            remedy="Run qinfer build-ops --device gpu --force.",
        ) from error
    _loaded.add(library)
    versions = {
        ops.arrange: _arrange,
        ops.linear: _linear,
        ops.linear_int8: _linear_int8,
        ops.linear_fp8: _linear_fp8,
        ops.linear_int4: _linear_int4,
        ops.rotary_kv_write: _rotary_kv_write,
        ops.paged_attention: _paged_attention,
        ops.silu_gate: _silu_gate,
        ops.rms_norm: _rms_norm,
        ops.add_rms_norm: _add_rms_norm,
        ops.embed: _embed,
        ops.take_rows: _take_rows,
        ops.to_float32: _to_float32,
        ops.argmax: _argmax,
        ops.edit_logits: _edit_logits,
        ops.sample: _sample,
        ops.token_logprobs: _token_logprobs,
        **cuda_experts.VERSIONS,
        **cuda_fused.VERSIONS,
    }
    for operator, version in versions.items():
        operator.versions[CUDA] = version


def empty(shape: list[int], dtype: str, device: int) -> Tensor:
    """An uninitialised tensor on a card, made there. Raises Unsupported if it does not fit."""
    carrier = paddle.from_dlpack(np.zeros(1, np.float32)).astype(dtype)  # of the type asked for
    try:
        return _run("qinfer_cuda_empty", carrier, shape, device)[0]
    except (MemoryError, OSError, RuntimeError) as error:
        size = int(np.prod(shape, dtype=np.int64)) * carrier.element_size() >> 20
        raise Unsupported(
            f"{size} MiB do not fit into the memory of gpu:{device}: {error}",
            remedy="Lower --kv-cache-memory or --max-model-len, or free memory (see nvidia-smi).",
        ) from error


def _arrange(weight: Tensor, dtype: str) -> Tensor:
    return weight


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: str, out: int) -> Tensor:
    return _run("qinfer_cuda_linear", x, weight, None, bias, PLAIN, out)[0]


def _linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return _run("qinfer_cuda_linear", x, weight, scale, bias, INT8, scale.shape[0])[0]


def _linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return _run("qinfer_cuda_linear", x, weight, scale, bias, E4M3, scale.shape[0])[0]


def _linear_int4(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: int) -> Tensor:
    return _run("qinfer_cuda_linear", x, weight, scale, bias, INT4, out)[0]


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
    return _run(
        "qinfer_cuda_rotary_kv_write",
        qkv,
        rotary,
        positions,
        slot_mapping,
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        q_norm,
        k_norm,
        query_scale,
        eps,
    )[0]


def _paged_attention(
    queries: Tensor,
    cache: LayerCache,
    query_starts: Tensor,
    seq_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
) -> Tensor:
    return _run(
        "qinfer_cuda_paged_attention",
        queries,
        cache.keys,
        cache.values,
        query_starts,
        seq_lens,
        block_tables,
        cache.key_scales,
        cache.value_scales,
        scale,
        window,
    )[0]


def _missing(what: str) -> Unsupported:
    return Unsupported(
        f"the GPU operators do not have {what} yet", remedy="Use --device cpu for this model."
    )


def _refusal(name: str) -> Callable[..., Any]:
    """A stand-in: Paddle would compute the reference on the processor without a word."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise _missing(f"the operator {name}")

    return refuse


def _silu_gate(x: Tensor) -> Tensor:
    return _run("qinfer_cuda_silu_gate", x)[0]


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _run("qinfer_cuda_rms_norm", x, weight, eps)[0]


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed, total = _run("qinfer_cuda_add_rms_norm", x, residual, weight, eps)
    return normed, total


def _embed(token_ids: Tensor, table: Tensor, dtype: str) -> Tensor:
    return _run("qinfer_cuda_gather", table, token_ids)[0]


def _take_rows(x: Tensor, rows: Tensor) -> Tensor:
    return _run("qinfer_cuda_take_rows", x, rows)[0]


def _to_float32(x: Tensor) -> Tensor:
    return _run("qinfer_cuda_to_float32", x)[0]


def _argmax(logits: Tensor) -> Tensor:
    return _run("qinfer_cuda_argmax", logits)[0]


def _edit_logits(
    logits: Tensor, rows: Tensor, tokens: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    return _run("qinfer_cuda_edit_logits", logits, rows, tokens, scale, bias)[0]


def _sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    shortlist: int,
) -> Tensor:
    return _run("qinfer_cuda_sample", logits, temperature, top_k, top_p, min_p, uniform)[0]


def _token_logprobs(logits: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    picked, top, ids = _run("qinfer_cuda_token_logprobs", logits, chosen, count)
    return picked, top, ids
