// Products as Paddle custom operators: few rows by kernels that read the weights once as they are
// held, many by cuBLASLt, from weights unpacked for it where it does not know their format.
#include <algorithm>
#include <string>

#include "../infer.h"
#include "hopper_products.h"
#include "matmul.h"
#include "tensors.h"

namespace qinfer::cuda {
namespace {

DataType held_as(Format format, DataType plain) {
  switch (format) {
    case Format::kPlain:
      return plain;
    case Format::kInt8:
      return DataType::INT8;
    case Format::kE4M3:
      return DataType::FLOAT8_E4M3FN;
    default:
      return DataType::UINT8;
  }
}

struct Operands {
  const Tensor &x, &weight;
  const paddle::optional<Tensor>&scale, &bias;
  Format format;
  int64_t rows, in, out;
  Type type;
  cudaStream_t stream;
};

Operands checked(const Tensor& x, const Tensor& weight, const paddle::optional<Tensor>& scale,
                 const paddle::optional<Tensor>& bias, int64_t number, int64_t out) {
  PD_CHECK(number >= 0 && number <= 3, "qinfer_cuda_linear: unknown weight format");
  const auto format = static_cast<Format>(number);
  const int64_t rows = x.shape()[0], in = x.shape()[1];
  PD_CHECK(in % 16 == 0, "qinfer_cuda_linear: the inputs must be a multiple of 16, not ", in);
  PD_CHECK(format != Format::kInt4 || in % 64 == 0, "qinfer_cuda_linear: int4 needs groups of 64");
  const int64_t size = format == Format::kInt4 ? int4_bytes(out, in) : out * in;
  PD_CHECK(weight.dtype() == held_as(format, x.dtype()) && weight.numel() == size,
           "qinfer_cuda_linear: the weight has another type or size");
  PD_CHECK(!bias || (bias->numel() == out && bias->dtype() == x.dtype()),
           "qinfer_cuda_linear: the bias must be [out] of x's type");
  const int64_t scales = format == Format::kInt4 ? out * (in / 64) : out;
  PD_CHECK((format == Format::kPlain) == !scale && (!scale || scale->numel() == scales),
           "qinfer_cuda_linear: the scale has another size");
  return {
      x,           weight, scale, bias, format, rows, in, out, type_of(x, "qinfer_cuda_linear: x"),
      stream_of(x)};
}

// Above so many rows cuBLASLt is faster, unpacking of weights included (benchmarks/gpu/NOTES.md).
int64_t most_streamed(Format format) {
  if (!has_matmul()) return INT64_MAX;
  if (format == Format::kPlain || format == Format::kE4M3) return 16;
  return is_sm90() ? 3 * kStreamRows : format == Format::kInt8 ? kStreamRows : 16;
}

// Rows by 64 at a time.
void stream_rows(const Operands& o, const void* x, const float* x_scale, Tensor& y) {
  for (int64_t row = 0; row < o.rows; row += kStreamRows) {
    const Product p{static_cast<const uint16_t*>(x) + row * o.in,
                    o.weight.data(),
                    o.scale ? floats(*o.scale, "qinfer_cuda_linear: scale") : nullptr,
                    x_scale ? x_scale + row : nullptr,
                    o.bias ? o.bias->data() : nullptr,
                    static_cast<uint16_t*>(y.data()) + row * o.out,
                    std::min(kStreamRows, o.rows - row),
                    o.in,
                    o.out};
    const bool is_few_bits = o.format == Format::kInt8 || o.format == Format::kInt4;
    const bool by_hopper = is_sm90() && is_few_bits && p.rows > 16;
    (by_hopper ? product_hopper : product)(o.type, o.format, p, o.stream);
  }
}

class Spaces {
 public:
  explicit Spaces(const Tensor& like) : like_(like) {}
  void* operator()(size_t bytes) {
    held_.push_back(output({static_cast<int64_t>(bytes)}, DataType::UINT8, like_));
    return held_.back().data();
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> held_;
};

Product whole(const Operands& o, const void* x, const void* weight, Tensor& y) {
  return {x,
          weight,
          o.scale ? floats(*o.scale, "qinfer_cuda_linear: scale") : nullptr,
          nullptr,
          o.bias ? o.bias->data() : nullptr,
          y.data(),
          o.rows,
          o.in,
          o.out};
}

FusedProduct fused(const Operands& o, Tensor& y) {
  FusedProduct p = {};
  p.x = o.x.data(), p.weight = o.weight.data(), p.y = y.data();
  p.scale = o.scale ? floats(*o.scale, "qinfer_cuda_linear: scale") : nullptr;
  p.bias = o.bias ? o.bias->data() : nullptr;
  p.rows = o.rows, p.in = o.in, p.out = o.out;
  return p;
}

void multiply_e4m3(const Operands& o, Tensor& y, const Workspace& workspace) {
  Tensor scale = output({o.rows}, DataType::FLOAT32, o.x);
  if (o.rows > most_streamed(o.format)) {
    void* bytes = workspace(o.rows * o.in);
    quantise_rows(o.type, o.x.data(), bytes, scale.data<float>(), true, o.rows, o.in, o.stream);
    Product p = whole(o, bytes, o.weight.data(), y);
    p.x_scale = scale.data<float>();
    if (rows_hopper_suits(o.rows, o.in, p.out)) return rows_hopper(o.type, p, o.stream);
    if (matmul_hopper_suits(o.rows, o.in, p.out, false))
      return matmul_hopper(o.type, true, false, p, o.stream);
    if (matmul_e4m3(o.type, p, workspace, o.stream)) return;
  }
  void* rounded = workspace(o.rows * o.in * 2);
  quantise_rows(o.type, o.x.data(), rounded, scale.data<float>(), false, o.rows, o.in, o.stream);
  stream_rows(o, rounded, scale.data<float>(), y);
}

std::vector<Tensor> linear(const Tensor& x, const Tensor& weight,
                           const paddle::optional<Tensor>& scale,
                           const paddle::optional<Tensor>& bias, int64_t format, int64_t out) {
  const Operands o = checked(x, weight, scale, bias, format, out);
  Tensor y = output({o.rows, out}, x.dtype(), x);
  Spaces spaces(x);
  const Workspace workspace = std::ref(spaces);
  // int8 alone is faster by linear.cu, which rounds no inputs (benchmarks/gpu/NOTES.md)
  if (o.format != Format::kInt8 && fused_knows(o.type, o.format, o.rows, o.in, o.out)) {
    fused_product(o.format, fused(o, y), o.stream);
  } else if (o.format == Format::kE4M3) {
    multiply_e4m3(o, y, workspace);
  } else if (o.rows <= most_streamed(o.format)) {
    stream_rows(o, x.data(), nullptr, y);
  } else if (o.format == Format::kPlain) {
    matmul(o.type, whole(o, x.data(), weight.data(), y), workspace, o.stream);
  } else {
    void* unpacked = workspace(o.in * out * 2);
    dequantise(o.type, o.format, weight.data(), floats(*scale, "qinfer_cuda_linear: scale"),
               unpacked, out, o.in, o.stream);
    matmul(o.type, whole(o, x.data(), unpacked, y), workspace, o.stream);
  }
  return {y};
}

// The product's halves gated in the registers of one kernel, where that is the fastest.
bool multiply_gated(const Operands& o, Tensor& half, const Workspace& workspace) {
  const bool is_e4m3 = o.format == Format::kE4M3;
  if (!is_e4m3 && o.format != Format::kPlain) return false;
  if (!matmul_hopper_suits(o.rows, o.in, o.out, true)) return false;
  Product p = whole(o, o.x.data(), o.weight.data(), half);
  if (is_e4m3) {
    void* bytes = workspace(o.rows * o.in);
    auto* scale = static_cast<float*>(workspace(o.rows * sizeof(float)));
    quantise_rows(o.type, o.x.data(), bytes, scale, true, o.rows, o.in, o.stream);
    p.x = bytes, p.x_scale = scale;
  }
  matmul_hopper(o.type, is_e4m3, true, p, o.stream);
  return true;
}

// The same as kernels one after the other.
std::vector<Tensor> norm_then_linear(const Tensor& x, const paddle::optional<Tensor>& residual,
                                     const Tensor& norm, const Tensor& weight,
                                     const paddle::optional<Tensor>& scale,
                                     const paddle::optional<Tensor>& bias, float eps,
                                     int64_t format, int64_t out, bool gated) {
  const Type type = type_of(x, "qinfer_cuda_norm_linear: x");
  const int64_t rows = x.shape()[0], width = x.shape()[1];
  const cudaStream_t stream = stream_of(x);
  PD_CHECK(width % 8 == 0 && width <= 16384,
           "qinfer_cuda_norm_linear: the width must be a multiple of 8 up to 16384");
  Tensor normed = output(x.shape(), x.dtype(), x), total = x;
  if (residual) total = output(x.shape(), x.dtype(), x);
  rms_norm(type, x.data(), residual ? residual->data() : nullptr, norm.data(), eps, normed.data(),
           residual ? total.data() : nullptr, rows, width, stream);
  if (!gated) return {linear(normed, weight, scale, bias, format, out)[0], total};
  PD_CHECK(out % 16 == 0, "qinfer_cuda_norm_linear: gates must be a multiple of 8");
  Tensor half = output({rows, out / 2}, x.dtype(), x);
  Spaces spaces(x);
  const Operands o = checked(normed, weight, scale, bias, format, out);
  if (multiply_gated(o, half, std::ref(spaces))) return {half, total};
  const Tensor y = linear(normed, weight, scale, bias, format, out)[0];
  silu_gate(type, y.data(), half.data(), rows, out / 2, stream);
  return {half, total};
}

// y = product of norm(x + residual) * norm, gated or not, and x + residual; x itself where there is
// no residual.
std::vector<Tensor> norm_linear(const Tensor& x, const paddle::optional<Tensor>& residual,
                                const Tensor& norm, const Tensor& weight,
                                const paddle::optional<Tensor>& scale,
                                const paddle::optional<Tensor>& bias, float eps, int64_t format,
                                int64_t out, bool gated) {
  const Operands o = checked(x, weight, scale, bias, format, out);
  PD_CHECK(norm.dtype() == x.dtype() && norm.numel() == o.in &&
               (!residual || (residual->shape() == x.shape() && residual->dtype() == x.dtype())),
           "qinfer_cuda_norm_linear: the norm must be [in], the residual as x");
  if (!fused_knows(o.type, o.format, o.rows, o.in, o.out))
    return norm_then_linear(x, residual, norm, weight, scale, bias, eps, format, out, gated);
  Tensor y = output({o.rows, gated ? out / 2 : out}, x.dtype(), x), total = x;
  FusedProduct p = fused(o, y);
  p.norm = norm.data(), p.eps = eps, p.gated = gated;
  if (residual) {
    total = output(x.shape(), x.dtype(), x);
    p.residual = residual->data(), p.total = total.data();
  }
  fused_product(o.format, p, o.stream);
  return {y, total};
}

// int4 values [out, in] as int8 -> packed bytes. Ends when it is done: products may read their
// weights before the kernels queued ahead of them have ended.
std::vector<Tensor> pack(const Tensor& weight) {
  const int64_t out = weight.shape()[0], in = weight.shape()[1];
  PD_CHECK(in % 64 == 0, "qinfer_cuda_pack_int4: int4 needs a multiple of 64 inputs");
  Tensor packed = output({int4_bytes(out, in)}, DataType::UINT8, weight);
  const cudaStream_t stream = stream_of(weight);
  pack_int4(numbers<int8_t>(weight, DataType::INT8, "qinfer_cuda_pack_int4: weight"),
            packed.data<uint8_t>(), out, in, stream);
  check(cudaStreamSynchronize(stream), "packing a weight");
  return {packed};
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_linear)
    .Inputs({"x", "weight", paddle::Optional("scale"), paddle::Optional("bias")})
    .Outputs({"y"})
    .Attrs({"format: int64_t", "out: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::linear))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_norm_linear)
    .Inputs({"x", paddle::Optional("residual"), "norm", "weight", paddle::Optional("scale"),
             paddle::Optional("bias")})
    .Outputs({"y", "total"})
    .Attrs({"eps: float", "format: int64_t", "out: int64_t", "gated: bool"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::norm_linear))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::norm_linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::two_same));

PD_BUILD_OP(qinfer_cuda_pack_int4)
    .Inputs({"weight"})
    .Outputs({"packed"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::pack));
