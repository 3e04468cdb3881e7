// The CPU operators as Paddle custom operators. Shapes and types are checked here, where they
// come in; the kernels trust them.
#include "cpu/attention.h"
#include "cpu/linear.h"
#include "paddle/extension.h"

using paddle::DataType;
using paddle::Tensor;
using Shape = std::vector<int64_t>;

namespace {

// The dtype a weight of that format comes in; int4 as int8 values from -8 to 7.
DataType source_of(qinfer::Format format) {
  switch (format) {
    case qinfer::Format::kF32:
      return DataType::FLOAT32;
    case qinfer::Format::kBF16:
      return DataType::BFLOAT16;
    case qinfer::Format::kE4M3:
      return DataType::FLOAT8_E4M3FN;
    default:
      return DataType::INT8;
  }
}

const float* floats(const Tensor& x, const char* what) {
  PD_CHECK(x.dtype() == DataType::FLOAT32, what, " must be float32");
  return x.data<float>();
}

const float* floats(const paddle::optional<Tensor>& x, const char* what) {
  return x ? floats(*x, what) : nullptr;
}

// weight [out, in] -> bytes in panel order
std::vector<Tensor> pack(const Tensor& weight, int64_t number) {
  PD_CHECK(weight.shape().size() == 2, "qinfer_pack: the weight must be [out, in]");
  const int64_t out = weight.shape()[0], in = weight.shape()[1];
  const auto format = static_cast<qinfer::Format>(number);
  PD_CHECK(weight.dtype() == source_of(format), "qinfer_pack: the weight has another type");
  PD_CHECK(format != qinfer::Format::kInt4 || in % 64 == 0,
           "qinfer_pack: int4 needs a multiple of 64 inputs");
  Tensor packed =
      paddle::empty({qinfer::packed_bytes(format, out, in)}, DataType::UINT8, weight.place());
  qinfer::pack_weight(format, weight.data(), packed.data<uint8_t>(), out, in);
  return {packed};
}

std::vector<Tensor> linear(const Tensor& x, const Tensor& packed,
                           const paddle::optional<Tensor>& scale,
                           const paddle::optional<Tensor>& bias, int64_t format, int64_t out) {
  const int64_t rows = x.shape()[0], in = x.shape()[1];
  const auto kind = static_cast<qinfer::Format>(format);
  PD_CHECK(packed.numel() == qinfer::packed_bytes(kind, out, in),
           "qinfer_linear: the packed weight does not have this shape");
  PD_CHECK(!bias || bias->numel() == out, "qinfer_linear: the bias must be [out]");
  const int64_t scales = kind == qinfer::Format::kInt4 ? (out + 15) / 16 * 16 * (in / 64) : out;
  PD_CHECK(!scale || scale->numel() == scales, "qinfer_linear: the scale has another size");
  Tensor y = paddle::empty({rows, out}, DataType::FLOAT32, x.place());
  qinfer::linear(kind, floats(x, "qinfer_linear: x"), packed.data(), floats(scale, "scale"),
                 floats(bias, "bias"), y.data<float>(), rows, in, out);
  return {y};
}

std::vector<Tensor> rotary_kv_write(const Tensor& qkv, const Tensor& rotary,
                                    const Tensor& positions, const Tensor& slots, Tensor& keys,
                                    Tensor& values) {
  const int64_t kv_heads = keys.shape()[2], dim = keys.shape()[3], tokens = qkv.shape()[0];
  const int64_t heads = qkv.shape()[1] / dim - 2 * kv_heads;
  PD_CHECK(dim % 2 == 0 && rotary.shape()[1] == 2 * dim, "qinfer_rotary_kv_write: head size");
  Tensor queries = paddle::empty({tokens, heads, dim}, DataType::FLOAT32, qkv.place());
  floats(keys, "key cache"), floats(values, "value cache");
  qinfer::rotary_kv_write(floats(qkv, "qkv"), floats(rotary, "rotary"), positions.data<int64_t>(),
                          slots.data<int64_t>(), keys.data<float>(), values.data<float>(),
                          queries.data<float>(), tokens, heads, kv_heads, dim);
  return {queries};
}

std::vector<Tensor> paged_attention(const Tensor& queries, const Tensor& keys, const Tensor& values,
                                    const Tensor& starts, const Tensor& lengths,
                                    const Tensor& tables, double scale) {
  const Shape q = queries.shape(), cache = keys.shape();
  PD_CHECK(q[2] % 16 == 0 && cache[1] % 16 == 0,
           "qinfer_paged_attention: head and block size must be multiples of 16");
  Tensor out = paddle::empty({q[0], q[1] * q[2]}, DataType::FLOAT32, queries.place());
  const qinfer::Paged paged{floats(keys, "keys"),
                            floats(values, "values"),
                            tables.data<int32_t>(),
                            starts.data<int32_t>(),
                            lengths.data<int32_t>(),
                            lengths.shape()[0],
                            tables.shape()[1],
                            cache[1],
                            q[1],
                            cache[2],
                            q[2]};
  qinfer::paged_attention(paged, floats(queries, "queries"), static_cast<float>(scale),
                          out.data<float>());
  return {out};
}

std::vector<Tensor> silu_gate(const Tensor& x) {
  const int64_t rows = x.shape()[0], width = x.shape()[1] / 2;
  Tensor y = paddle::empty({rows, width}, DataType::FLOAT32, x.place());
  qinfer::silu_gate(floats(x, "qinfer_silu_gate: x"), y.data<float>(), rows, width);
  return {y};
}

}  // namespace

PD_BUILD_OP(qinfer_pack)
    .Inputs({"weight"})
    .Outputs({"packed"})
    .Attrs({"format: int64_t"})
    .SetKernelFn(PD_KERNEL(pack));

PD_BUILD_OP(qinfer_linear)
    .Inputs({"x", "packed", paddle::Optional("scale"), paddle::Optional("bias")})
    .Outputs({"y"})
    .Attrs({"format: int64_t", "out: int64_t"})
    .SetKernelFn(PD_KERNEL(linear));

PD_BUILD_OP(qinfer_rotary_kv_write)
    .Inputs({"qkv", "rotary", "positions", "slots", "keys", "values"})
    .Outputs({"queries"})
    .SetKernelFn(PD_KERNEL(rotary_kv_write));

PD_BUILD_OP(qinfer_paged_attention)
    .Inputs({"queries", "keys", "values", "starts", "lengths", "tables"})
    .Outputs({"out"})
    .Attrs({"scale: double"})
    .SetKernelFn(PD_KERNEL(paged_attention));

PD_BUILD_OP(qinfer_silu_gate).Inputs({"x"}).Outputs({"y"}).SetKernelFn(PD_KERNEL(silu_gate));
