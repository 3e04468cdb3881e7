// Matrix products in each weight format, also of experts.
#include "binding.h"
#include "cpu/experts.h"
#include "cpu/linear.h"
#include "cpu/pages.h"
#include "infer.h"

using namespace qinfer::binding;

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

// Whether so many scales fit a weight [out, in]: one for each output, and for each group of int4.
bool are_scales(qinfer::Format format, int64_t count, int64_t out, int64_t in) {
  if (format != qinfer::Format::kInt4) return count == out;
  const int64_t each = qinfer::packed_scales(out, 1), groups = count / each;
  return groups > 0 && count == groups * each && in % groups == 0 && in / groups % 64 == 0;
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
  qinfer::prefer_huge_pages(packed.data(), packed.numel());
  return {packed};
}

// Scales [out, groups] in panel order.
std::vector<Tensor> pack_scales(const Tensor& scale) {
  PD_CHECK(scale.shape().size() == 2, "qinfer_pack_scales: the scale must be [out, groups]");
  const int64_t out = scale.shape()[0], groups = scale.shape()[1];
  Tensor packed =
      paddle::empty({qinfer::packed_scales(out, groups)}, DataType::FLOAT32, scale.place());
  qinfer::pack_scales(floats(scale, "the scale"), packed.data<float>(), out, groups);
  return {packed};
}

std::vector<Tensor> linear(const Tensor& x, const Tensor& packed, const Optional& scale,
                           const Optional& bias, int64_t format, int64_t out) {
  const int64_t rows = x.shape()[0], in = x.shape()[1];
  const auto kind = static_cast<qinfer::Format>(format);
  PD_CHECK(packed.numel() == qinfer::packed_bytes(kind, out, in),
           "qinfer_linear: the packed weight does not have this shape");
  PD_CHECK(!bias || bias->numel() == out, "qinfer_linear: the bias must be [out]");
  const int64_t scales = scale ? scale->numel() : 0;
  PD_CHECK(!scale || are_scales(kind, scales, out, in), "qinfer_linear: the scale's size");
  Tensor y = result({rows, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::linear(kind, floats(x, "qinfer_linear: x"), read(packed),
                                floats(scale, "scale"), floats(bias, "bias"), written(y), rows, in,
                                out, scales));
  return {y};
}

std::vector<Tensor> linear_a8w8(const Tensor& x, const Tensor& packed, const Tensor& scale,
                                const Optional& bias, const Optional& input_scale) {
  const int64_t rows = x.shape()[0], in = x.shape()[1], out = scale.numel();
  PD_CHECK(packed.numel() == qinfer::packed_bytes(qinfer::Format::kInt8, out, in),
           "qinfer_linear_a8w8: the packed weight does not have this shape");
  PD_CHECK(!bias || bias->numel() == out, "qinfer_linear_a8w8: the bias must be [out]");
  PD_CHECK(!input_scale || input_scale->numel() == 1,
           "qinfer_linear_a8w8: the input's scale must be one number");
  Tensor y = result({rows, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::linear_a8w8(floats(x, "qinfer_linear_a8w8: x"), read(packed),
                                     floats(scale, "scale"), floats(input_scale, "input_scale"),
                                     floats(bias, "bias"), written(y), rows, in, out));
  return {y};
}

std::vector<Tensor> route(const Tensor& logits, int64_t top_k, bool normalise) {
  const int64_t tokens = logits.shape()[0], count = logits.shape()[1];
  PD_CHECK(0 < top_k && top_k <= count, "qinfer_route: top_k must be from 1 to the experts");
  Tensor weights = result({tokens, top_k}, DataType::FLOAT32, logits);
  Tensor experts = result({tokens, top_k}, DataType::INT32, logits);
  qinfer::submit(
      qinfer::route(floats(logits, "logits"), written(weights),
                    const_cast<int32_t*>(experts.data<int32_t>()), tokens, count, top_k, normalise),
      tokens > kFew);
  return {weights, experts};
}

std::vector<Tensor> expert_linear(const Tensor& x, const Tensor& packed, const Optional& scale,
                                  const Tensor& experts, int64_t format, int64_t out) {
  const int64_t rows = x.shape()[0], in = x.shape()[1], pairs = experts.numel();
  const auto kind = static_cast<qinfer::Format>(format);
  const int64_t each = qinfer::packed_bytes(kind, out, in), count = packed.numel() / each;
  PD_CHECK(out % qinfer::kPanelOutputs == 0 && packed.numel() == count * each,
           "qinfer_expert_linear: the packed weights do not have this shape");
  PD_CHECK(rows > 0 && pairs % rows == 0, "qinfer_expert_linear: rows must divide the pairs");
  const int64_t scales = scale ? scale->numel() / count : 0;
  PD_CHECK(!scale || (scale->numel() == count * scales && are_scales(kind, scales, out, in)),
           "qinfer_expert_linear: the scale's size");
  Tensor y = result({pairs, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::expert_linear(kind, floats(x, "qinfer_expert_linear: x"), read(packed),
                                       floats(scale, "scale"), int32s(experts, "experts"),
                                       written(y), pairs, rows, in, out, count, scales));
  return {y};
}

std::vector<Tensor> expert_linear_e4m3_blocks(const Tensor& x, const Tensor& packed,
                                              const Tensor& scale, const Tensor& experts,
                                              int64_t block, int64_t out) {
  const int64_t rows = x.shape()[0], in = x.shape()[1], pairs = experts.numel();
  const int64_t each = qinfer::packed_bytes(qinfer::Format::kE4M3, out, in);
  const int64_t count = packed.numel() / each;
  PD_CHECK(out % qinfer::kPanelOutputs == 0 && packed.numel() == count * each,
           "qinfer_expert_linear_e4m3_blocks: the packed weights do not have this shape");
  PD_CHECK(block > 0 && block % 4 == 0 && out % block == 0,
           "qinfer_expert_linear_e4m3_blocks: blocks of 4, 8, 12, ..., whole ones of each expert");
  PD_CHECK(scale.shape() == Shape({count * out / block, (in + block - 1) / block}),
           "qinfer_expert_linear_e4m3_blocks: a scale for each block");
  PD_CHECK(rows > 0 && pairs % rows == 0,
           "qinfer_expert_linear_e4m3_blocks: rows must divide the pairs");
  Tensor y = result({pairs, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::expert_linear_e4m3_blocks(
      floats(x, "qinfer_expert_linear_e4m3_blocks: x"), read(packed), floats(scale, "scale"), block,
      int32s(experts, "experts"), written(y), pairs, rows, in, out, count));
  return {y};
}

std::vector<Tensor> mix_experts(const Tensor& routed, const Tensor& weights, const Optional& shared,
                                const Optional& gate) {
  const int64_t tokens = weights.shape()[0], top_k = weights.shape()[1], width = routed.shape()[1];
  PD_CHECK(routed.shape()[0] == tokens * top_k, "qinfer_mix_experts: a row for each pair");
  PD_CHECK(!shared == !gate &&
               (!shared || (shared->numel() == tokens * width && gate->numel() == tokens)),
           "qinfer_mix_experts: shared must be [tokens, width] and have a gate [tokens, 1]");
  Tensor y = result({tokens, width}, DataType::FLOAT32, routed);
  qinfer::submit(qinfer::mix_experts(floats(routed, "routed"), floats(weights, "weights"),
                                     floats(shared, "shared"), floats(gate, "gate"), written(y),
                                     tokens, top_k, width),
                 tokens > kFew);
  return {y};
}

}  // namespace

PD_BUILD_OP(qinfer_pack)
    .Inputs({"weight"})
    .Outputs({"packed"})
    .Attrs({"format: int64_t"})
    .SetKernelFn(PD_KERNEL(pack));

PD_BUILD_OP(qinfer_pack_scales)
    .Inputs({"scale"})
    .Outputs({"packed"})
    .SetKernelFn(PD_KERNEL(pack_scales));

PD_BUILD_OP(qinfer_linear)
    .Inputs({"x", "packed", paddle::Optional("scale"), paddle::Optional("bias")})
    .Outputs({"y"})
    .Attrs({"format: int64_t", "out: int64_t"})
    .SetKernelFn(PD_KERNEL(linear))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_linear_a8w8)
    .Inputs({"x", "packed", "scale", paddle::Optional("bias"), paddle::Optional("input_scale")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(linear_a8w8))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::scaled_linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_route)
    .Inputs({"logits"})
    .Outputs({"weights", "experts"})
    .Attrs({"top_k: int64_t", "normalise: bool"})
    .SetKernelFn(PD_KERNEL(route))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::routes))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::weights_and_experts));

PD_BUILD_OP(qinfer_expert_linear)
    .Inputs({"x", "packed", paddle::Optional("scale"), "experts"})
    .Outputs({"y"})
    .Attrs({"format: int64_t", "out: int64_t"})
    .SetKernelFn(PD_KERNEL(expert_linear))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::expert_linear))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_expert_linear_e4m3_blocks)
    .Inputs({"x", "packed", "scale", "experts"})
    .Outputs({"y"})
    .Attrs({"block: int64_t", "out: int64_t"})
    .SetKernelFn(PD_KERNEL(expert_linear_e4m3_blocks))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::expert_blocks))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_mix_experts)
    .Inputs({"routed", "weights", paddle::Optional("shared"), paddle::Optional("gate")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(mix_experts))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::mixed))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));
