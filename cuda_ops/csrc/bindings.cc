// The CPU operators as Paddle custom operators. Shapes and types are checked here, where they
// come in; the kernels trust them.
#include "binding.h"
#include "cpu/attention.h"
#include "cpu/rows.h"
#include "cpu/sampling.h"
#include "infer.h"

using namespace qinfer::binding;

namespace {

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

}  // namespace

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
