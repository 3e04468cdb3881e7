// The CPU operators as Paddle custom operators. Shapes and types are checked here, where they
// come in; the kernels trust them.
#include "binding.h"
#include "cpu/attention.h"
#include "cpu/experts.h"
#include "cpu/linear.h"
#include "cpu/pages.h"
#include "cpu/rows.h"
#include "cpu/sampling.h"
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
  const int64_t scales = kind == qinfer::Format::kInt4 ? qinfer::packed_scales(out, in / 64) : out;
  PD_CHECK(!scale || scale->numel() == scales, "qinfer_linear: the scale has another size");
  Tensor y = result({rows, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::linear(kind, floats(x, "qinfer_linear: x"), read(packed),
                                floats(scale, "scale"), floats(bias, "bias"), written(y), rows, in,
                                out));
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

qinfer::CacheType cache_type(DataType type) {
  if (type == DataType::BFLOAT16) return qinfer::CacheType::kBF16;
  if (type == DataType::INT8) return qinfer::CacheType::kInt8;
  if (type == DataType::FLOAT8_E4M3FN) return qinfer::CacheType::kE4M3;
  PD_CHECK(type == DataType::FLOAT32, "qinfer: a cache cannot hold ", type);
  return qinfer::CacheType::kF32;
}

qinfer::Cache cache_of(const Tensor& keys, const Tensor& values, const Optional& key_scales,
                       const Optional& value_scales) {
  const Shape shape = keys.shape();
  PD_CHECK(shape.size() == 4 && shape == values.shape() && keys.dtype() == values.dtype(),
           "qinfer: key and value cache must be [blocks, block_size, kv_heads, dim] of one type");
  PD_CHECK(shape[1] % 16 == 0 && shape[3] % 16 == 0,
           "qinfer: block and head size must be multiples of 16");
  const qinfer::CacheType type = cache_type(keys.dtype());
  bool is_static = false;
  if (type == qinfer::CacheType::kInt8 || type == qinfer::CacheType::kE4M3) {
    PD_CHECK(key_scales && value_scales && key_scales->shape() == value_scales->shape(),
             "qinfer: keys and values must have scales alike");
    const int64_t size = shape[0] * shape[1] * shape[2], count = key_scales->numel();
    is_static = key_scales->shape().size() == 1;
    PD_CHECK(count == (is_static ? shape[2] : size),
             "qinfer: the scales must be [blocks, block_size, kv_heads], or [kv_heads]");
  }
  return {type,
          const_cast<void*>(read(keys)),
          const_cast<void*>(read(values)),
          const_cast<float*>(floats(key_scales, "key scales")),
          const_cast<float*>(floats(value_scales, "value scales")),
          is_static,
          shape[1],
          shape[2],
          shape[3]};
}

std::vector<Tensor> rotary_kv_write(const Tensor& qkv, const Tensor& table, const Tensor& positions,
                                    const Tensor& slots, Tensor& keys, Tensor& values,
                                    const Optional& key_scales, const Optional& value_scales,
                                    const Optional& q_norm, const Optional& k_norm,
                                    const Optional& query_scale, float eps) {
  const qinfer::Cache cache = cache_of(keys, values, key_scales, value_scales);
  const int64_t tokens = qkv.shape()[0], dim = cache.dim;
  const int64_t heads = qkv.shape()[1] / dim - 2 * cache.kv_heads;
  PD_CHECK(table.shape()[1] == 2 * dim, "qinfer_rotary_kv_write: the table must be [*, 2 dim]");
  PD_CHECK((!q_norm || q_norm->numel() == dim) && (!k_norm || k_norm->numel() == dim),
           "qinfer_rotary_kv_write: the norms must be [dim]");
  Tensor queries = result({tokens, heads, dim}, DataType::FLOAT32, qkv);
  const qinfer::Rotary rotary{floats(qkv, "qkv"),
                              floats(table, "rotary"),
                              int64s(positions, "positions"),
                              int64s(slots, "slot_mapping"),
                              written(queries),
                              tokens,
                              heads,
                              floats(q_norm, "q_norm"),
                              floats(k_norm, "k_norm"),
                              floats(query_scale, "query_scale"),
                              eps};
  qinfer::submit(qinfer::rotary_kv_write(rotary, cache), tokens > kFew);
  return {queries};
}

std::vector<Tensor> paged_attention(const Tensor& queries, const Tensor& keys, const Tensor& values,
                                    const Optional& key_scales, const Optional& value_scales,
                                    const Tensor& starts, const Tensor& lengths,
                                    const Tensor& tables, float scale, int64_t window) {
  const Shape q = queries.shape();
  const qinfer::Cache cache = cache_of(keys, values, key_scales, value_scales);
  Tensor out = result({q[0], q[1] * q[2]}, DataType::FLOAT32, queries);
  const qinfer::Paged paged{floats(queries, "queries"),
                            int32s(tables, "block_tables"),
                            int32s(starts, "query_starts"),
                            int32s(lengths, "seq_lens"),
                            lengths.shape()[0],
                            tables.shape()[1],
                            q[1],
                            window,
                            scale,
                            written(out)};
  qinfer::submit(qinfer::paged_attention(paged, cache));
  return {out};
}

std::vector<Tensor> silu_gate(const Tensor& x) {
  const int64_t rows = x.shape()[0], width = x.shape()[1] / 2;
  Tensor y = result({rows, width}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::silu_gate(floats(x, "qinfer_silu_gate: x"), written(y), rows, width),
                 rows > kFew);
  return {y};
}

std::vector<Tensor> rms_norm(const Tensor& x, const Optional& residual, const Tensor& weight,
                             float eps) {
  const int64_t rows = x.shape()[0], width = x.shape()[1];
  PD_CHECK(weight.numel() == width && (!residual || residual->shape() == x.shape()),
           "qinfer_rms_norm: x and residual must be [rows, width], the weight [width]");
  Tensor y = result({rows, width}, DataType::FLOAT32, x);
  Tensor total = residual ? result({rows, width}, DataType::FLOAT32, x) : y;
  qinfer::submit(
      qinfer::rms_norm(floats(x, "x"), floats(residual, "residual"), floats(weight, "weight"), eps,
                       written(y), residual ? written(total) : nullptr, rows, width),
      rows > kFew);
  return {y, total};
}

std::vector<Tensor> gather_rows(const Tensor& table, const Tensor& ids) {
  const int64_t rows = ids.shape()[0], width = table.shape()[1];
  const bool is_float = table.dtype() == DataType::FLOAT32;
  const bool is_bf16 = table.dtype() == DataType::BFLOAT16;
  PD_CHECK(is_float || is_bf16 || table.dtype() == DataType::FLOAT16,
           "qinfer_gather_rows: the table's type");
  Tensor y = result({rows, width}, DataType::FLOAT32, table);
  const auto type = is_float  ? qinfer::Float::kF32
                    : is_bf16 ? qinfer::Float::kBF16
                              : qinfer::Float::kF16;
  qinfer::submit(
      qinfer::gather_rows(type, read(table), int64s(ids, "rows"), written(y), rows, width),
      rows > kFew);
  return {y};
}

std::vector<Tensor> argmax(const Tensor& x) {
  const int64_t rows = x.shape()[0], width = x.shape()[1];
  PD_CHECK(width > 0, "qinfer_argmax: there is nothing to choose from");
  Tensor index = result({rows}, DataType::INT64, x);
  qinfer::submit(qinfer::argmax(floats(x, "logits"), const_cast<int64_t*>(index.data<int64_t>()),
                                rows, width));
  return {index};
}

std::vector<Tensor> sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k,
                           const Tensor& top_p, const Tensor& min_p, const Tensor& uniform) {
  const int64_t rows = logits.shape()[0], width = logits.shape()[1];
  PD_CHECK(width > 0, "qinfer_sample: there is nothing to choose from");
  for (const Tensor* one : {&temperature, &top_k, &top_p, &min_p, &uniform})
    PD_CHECK(one->numel() == rows, "qinfer_sample: every setting must be [rows]");
  Tensor chosen = result({rows}, DataType::INT64, logits);
  qinfer::submit(qinfer::sample({floats(logits, "logits"), floats(temperature, "temperature"),
                                 floats(top_p, "top_p"), floats(min_p, "min_p"),
                                 floats(uniform, "uniform"), int64s(top_k, "top_k"),
                                 const_cast<int64_t*>(chosen.data<int64_t>()), rows, width}));
  return {chosen};
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
  const int64_t scales = kind == qinfer::Format::kInt4 ? out * (in / 64) : out;
  PD_CHECK(!scale || scale->numel() == count * scales, "qinfer_expert_linear: the scale's size");
  Tensor y = result({pairs, out}, DataType::FLOAT32, x);
  qinfer::submit(qinfer::expert_linear(kind, floats(x, "qinfer_expert_linear: x"), read(packed),
                                       floats(scale, "scale"), int32s(experts, "experts"),
                                       written(y), pairs, rows, in, out, count));
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

PD_BUILD_OP(qinfer_rotary_kv_write)
    .Inputs({"qkv", "rotary", "positions", "slots", "keys", "values",
             paddle::Optional("key_scales"), paddle::Optional("value_scales"),
             paddle::Optional("q_norm"), paddle::Optional("k_norm"),
             paddle::Optional("query_scale")})
    .Outputs({"queries"})
    .Attrs({"eps: float"})
    .SetKernelFn(PD_KERNEL(rotary_kv_write))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::queries))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_paged_attention)
    .Inputs({"queries", "keys", "values", paddle::Optional("key_scales"),
             paddle::Optional("value_scales"), "starts", "lengths", "tables"})
    .Outputs({"out"})
    .Attrs({"scale: float", "window: int64_t"})
    .SetKernelFn(PD_KERNEL(paged_attention))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::attention))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_silu_gate)
    .Inputs({"x"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(silu_gate))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::half_the_width))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_rms_norm)
    .Inputs({"x", paddle::Optional("residual"), "weight"})
    .Outputs({"y", "total"})
    .Attrs({"eps: float"})
    .SetKernelFn(PD_KERNEL(rms_norm))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::two_alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::two_floats));

PD_BUILD_OP(qinfer_gather_rows)
    .Inputs({"table", "rows"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(gather_rows))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::gathered))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_argmax)
    .Inputs({"logits"})
    .Outputs({"index"})
    .SetKernelFn(PD_KERNEL(argmax))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::one_a_row))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::indices));

PD_BUILD_OP(qinfer_sample)
    .Inputs({"logits", "temperature", "top_k", "top_p", "min_p", "uniform"})
    .Outputs({"chosen"})
    .SetKernelFn(PD_KERNEL(sample))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::one_a_row))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::indices));

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

PD_BUILD_OP(qinfer_mix_experts)
    .Inputs({"routed", "weights", paddle::Optional("shared"), paddle::Optional("gate")})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(mix_experts))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::mixed))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));
