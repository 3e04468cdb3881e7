// What pre-quantised checkpoints need beside products: inputs scaled, shifted or reordered, zero
// points, and results side by side.
#include "../infer.h"
#include "columns.h"
#include "tensors.h"

namespace qinfer::cuda {
namespace {

using Optional = paddle::optional<Tensor>;

std::vector<Tensor> moved(const Tensor& x, const Optional& scale, const Optional& shift) {
  const int64_t rows = x.shape()[0], width = x.shape()[1];
  PD_CHECK((!scale || scale->numel() == width) && (!shift || shift->numel() == width),
           "qinfer_cuda_scale_shift: scale and shift must be [in]");
  Tensor y = output(x.shape(), x.dtype(), x);
  cuda::scale_shift(type_of(x, "qinfer_cuda_scale_shift: x"), x.data(),
                    scale ? floats(*scale, "qinfer_cuda_scale_shift: scale") : nullptr,
                    shift ? floats(*shift, "qinfer_cuda_scale_shift: shift") : nullptr, y.data(),
                    rows, width, stream_of(x));
  return {y};
}

std::vector<Tensor> taken(const Tensor& x, const Tensor& columns) {
  type_of(x, "qinfer_cuda_take_columns: x");
  const int64_t rows = x.shape()[0], width = columns.numel();
  Tensor y = output({rows, width}, x.dtype(), x);
  cuda::take_columns(x.data(), longs(columns, "qinfer_cuda_take_columns: columns"), y.data(), rows,
                     x.shape()[1], width, stream_of(x));
  return {y};
}

std::vector<Tensor> joined(const std::vector<Tensor>& parts) {
  int64_t width = 0;
  for (const Tensor& part : parts) {
    PD_CHECK(part.dtype() == parts[0].dtype() && part.shape()[0] == parts[0].shape()[0],
             "qinfer_cuda_join_columns: parts must be alike");
    width += part.shape()[1];
  }
  const int64_t rows = parts[0].shape()[0], size = phi::SizeOf(parts[0].dtype());
  Tensor y = output({rows, width}, parts[0].dtype(), parts[0]);
  auto* to = static_cast<uint8_t*>(y.data());
  for (const Tensor& part : parts) {
    const size_t bytes = part.shape()[1] * size;
    if (rows)
      check(cudaMemcpy2DAsync(to, width * size, part.data(), bytes, bytes, rows,
                              cudaMemcpyDeviceToDevice, stream_of(part)),
            "joining columns");
    to += bytes;
  }
  return {y};
}

std::vector<Tensor> with_zero_points(const Tensor& y, const Tensor& x, const Tensor& zero) {
  const int64_t groups = zero.shape()[0], out = zero.shape()[1], rows = x.shape()[0];
  PD_CHECK(y.dtype() == x.dtype() && y.shape()[0] == rows && y.shape()[1] == out &&
               x.shape()[1] % groups == 0,
           "qinfer_cuda_add_zero_points: y must be [rows, out], zero [groups, out]");
  Tensor total = output(y.shape(), y.dtype(), y);
  const ZeroPoints z{y.data(),     x.data(), floats(zero, "qinfer_cuda_add_zero_points: zero"),
                     total.data(), rows,     x.shape()[1],
                     out,          groups};
  cuda::add_zero_points(type_of(x, "qinfer_cuda_add_zero_points: x"), z, stream_of(x));
  return {total};
}

// An integer weight [out, in] with its scales [out, groups] multiplied in, as numbers of x's type.
std::vector<Tensor> ungrouped(const Tensor& weight, const Tensor& scale, const Tensor& like) {
  const int64_t out = weight.shape()[0], in = weight.shape()[1], groups = scale.shape()[1];
  PD_CHECK(scale.shape()[0] == out && in % groups == 0,
           "qinfer_cuda_ungroup: the scale must be [out, groups]");
  Tensor w = output({out, in}, like.dtype(), weight);
  dequantise_groups(type_of(like, "qinfer_cuda_ungroup: x"),
                    numbers<int8_t>(weight, DataType::INT8, "qinfer_cuda_ungroup: weight"),
                    floats(scale, "qinfer_cuda_ungroup: scale"), w.data(), out, in, in / groups,
                    stream_of(weight));
  return {w};
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_scale_shift)
    .Inputs({"x", paddle::Optional("scale"), paddle::Optional("shift")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::moved))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_take_columns)
    .Inputs({"x", "columns"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::taken))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::columns))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_join_columns)
    .Inputs({paddle::Vec("parts")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::joined))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::joined))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::joined_same));

PD_BUILD_OP(qinfer_cuda_add_zero_points)
    .Inputs({"y", "x", "zero"})
    .Outputs({"total"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::with_zero_points))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_ungroup)
    .Inputs({"weight", "scale", "like"})
    .Outputs({"w"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::ungrouped))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::third));
