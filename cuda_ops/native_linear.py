"""The CPU versions of matrix products."""

from __future__ import annotations

import paddle
from paddle import Tensor

from qinfer.cuda_ops import ops
from qinfer.cuda_ops.native_table import FORMATS, native, run


@native(ops.arrange)
def _arrange(weight: Tensor, dtype: str) -> Tensor:
    """Panels of outputs (csrc/cpu/panels.h), as bytes."""
    if weight.dtype == paddle.float16:
        weight = weight.astype("float32")
    return run("qinfer_pack", weight, FORMATS[str(weight.dtype).removeprefix("paddle.")])[0]


@native(ops.linear)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: str, out: int) -> Tensor:
    return run("qinfer_linear", x, weight, None, bias, FORMATS[dtype], out)[0]


@native(ops.linear_int8)
def _linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    out = scale.shape[0]
    return run("qinfer_linear", x, weight, scale, bias, FORMATS["int8"], out)[0]


@native(ops.linear_fp8)
def _linear_fp8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    out = scale.shape[0]
    return run("qinfer_linear", x, weight, scale, bias, FORMATS["float8_e4m3fn"], out)[0]


@native(ops.arrange_a8w8)
def _arrange_a8w8(weight: Tensor) -> Tensor:
    return run("qinfer_pack", weight, FORMATS["int8"])[0]


@native(ops.linear_a8w8)
def _linear_a8w8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
) -> Tensor:
    return run("qinfer_linear_a8w8", x, weight, scale, bias, input_scale)[0]


@native(ops.arrange_int4)
def _arrange_int4(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Panels with two weights a byte, and their scales in the order of those."""
    packed = run("qinfer_pack", weight, FORMATS["int4"])[0]
    return packed, run("qinfer_pack_scales", scale)[0]


@native(ops.linear_int4)
def _linear_int4(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: int) -> Tensor:
    return run("qinfer_linear", x, weight, scale, bias, FORMATS["int4"], out)[0]


@native(ops.arrange_fp8)
def _arrange_fp8(weight: Tensor) -> Tensor:
    return run("qinfer_pack_e4m3", weight)[0]


@native(ops.linear_fp8_static)
def _linear_fp8_static(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor
) -> Tensor:
    return run("qinfer_linear_e4m3", x, weight, scale, input_scale, bias)[0]


@native(ops.linear_fp8_block)
def _linear_fp8_block(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, block: int
) -> Tensor:
    return run("qinfer_linear_e4m3_blocks", x, weight, scale, bias, block)[0]


@native(ops.arrange_groups)
def _arrange_groups(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Panels, of two weights a byte where they are small enough."""
    packed, scales = run("qinfer_pack_groups", weight, scale)
    return packed, scales


@native(ops.linear_groups)
def _linear_groups(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return run("qinfer_linear_groups", x, weight, scale, bias)[0]


@native(ops.add_zero_points)
def _add_zero_points(y: Tensor, x: Tensor, zero: Tensor) -> Tensor:
    return run("qinfer_add_zero_points", y, x, zero)[0]


@native(ops.scale_shift)
def _scale_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return run("qinfer_scale_shift", x, scale, shift)[0]


@native(ops.take_columns)
def _take_columns(x: Tensor, columns: Tensor) -> Tensor:
    return run("qinfer_take_columns", x, columns)[0]


@native(ops.join_columns)
def _join_columns(parts: list[Tensor]) -> Tensor:
    return run("qinfer_join_columns", parts)[0]
