// Rotary embedding and attention as Paddle custom operators.
#include "bindings_attention.h"

#include "../infer.h"

namespace qinfer::cuda {

Format held_in(const Tensor& cache, const Tensor& computed) {
  if (cache.dtype() == DataType::INT8) return Format::kInt8;
  if (cache.dtype() == DataType::FLOAT8_E4M3FN) return Format::kE4M3;
  PD_CHECK(cache.dtype() == computed.dtype(),
           "qinfer_cuda: the KV cache must be int8, e4m3 or of the activations' type");
  return Format::kPlain;
}

std::vector<Tensor> rotary(const Tensor& qkv, const Tensor& table, const Tensor& positions,
                           const Tensor& slots, Tensor& keys, Tensor& values,
                           const Optional& key_scales, const Optional& value_scales,
                           const Optional& q_norm, const Optional& k_norm,
                           const Optional& query_scale, float eps) {
  const int64_t kv_heads = keys.shape()[2], dim = keys.shape()[3], tokens = qkv.shape()[0];
  const int64_t heads = qkv.shape()[1] / dim - 2 * kv_heads;
  PD_CHECK(head_size_known(dim) && table.shape()[1] == 2 * dim,
           "qinfer_cuda_rotary: the head size must be 16, 32, 64, 128 or 256");
  Tensor queries = output({tokens, heads, dim}, qkv.dtype(), qkv);
  Rotary r = {};
  r.qkv = qkv.data(), r.table = floats(table, "qinfer_cuda_rotary: table");
  r.at = longs(positions, "qinfer_cuda_rotary: positions");
  r.slots = longs(slots, "qinfer_cuda_rotary: slots");
  r.keys = keys.data(), r.values = values.data(), r.queries = queries.data();
  r.tokens = tokens, r.heads = heads, r.kv_heads = kv_heads, r.dim = dim;
  r.held = held_in(keys, qkv), r.eps = eps;
  if (r.held != Format::kPlain) {
    PD_CHECK(key_scales && value_scales, "qinfer_cuda_rotary: the KV cache has no scales");
    r.is_static = key_scales->shape().size() == 1;
    r.key_scales = const_cast<float*>(floats(*key_scales, "qinfer_cuda_rotary: key_scales"));
    r.value_scales = const_cast<float*>(floats(*value_scales, "qinfer_cuda_rotary: value_scales"));
  }
  const auto of = [&](const Optional& given) -> const void* {
    PD_CHECK(!given || given->dtype() == qkv.dtype(),
             "qinfer_cuda_rotary: factors of another type");
    return given ? given->data() : nullptr;
  };
  r.q_norm = of(q_norm), r.k_norm = of(k_norm), r.query_scale = of(query_scale);
  PD_CHECK(!r.q_norm == !r.k_norm, "qinfer_cuda_rotary: norms of queries and keys come together");
  cuda::rotary_kv_write(type_of(qkv, "qinfer_cuda_rotary: qkv"), r, stream_of(qkv));
  return {queries};
}

std::vector<Tensor> attention(const Tensor& queries, const Tensor& keys, const Tensor& values,
                              const Tensor& starts, const Tensor& lengths, const Tensor& tables,
                              const Optional& key_scales, const Optional& value_scales, float scale,
                              int64_t window) {
  const Shape q = queries.shape(), cache = keys.shape();
  Tensor out = output({q[0], q[1] * q[2]}, queries.dtype(), queries);
  Paged p = {};
  p.queries = queries.data(), p.keys = keys.data(), p.values = values.data(), p.out = out.data();
  p.starts = ints(starts, "qinfer_cuda_attention: starts");
  p.lengths = ints(lengths, "qinfer_cuda_attention: lengths");
  p.tables = ints(tables, "qinfer_cuda_attention: tables");
  p.tokens = q[0], p.sequences = lengths.shape()[0], p.width = tables.shape()[1];
  p.blocks = cache[0], p.block_size = cache[1], p.kv_heads = cache[2];
  p.heads = q[1], p.dim = q[2], p.scale = scale;
  p.window = static_cast<int>(window), p.held = held_in(keys, queries);
  if (p.held != Format::kPlain) {
    PD_CHECK(key_scales && value_scales, "qinfer_cuda_attention: the KV cache has no scales");
    p.is_static = key_scales->shape().size() == 1;
    p.key_scales = floats(*key_scales, "qinfer_cuda_attention: key_scales");
    p.value_scales = floats(*value_scales, "qinfer_cuda_attention: value_scales");
  }
  PD_CHECK(attention_knows(p),
           "qinfer_cuda_attention: the head size must be 16, 32, 64, 128 or 256, and with a window "
           "or a quantised KV cache 64 or 128");
  const cudaStream_t stream = stream_of(queries);
  Tensor scratch;
  if (const int64_t size = attention_scratch(p)) {
    scratch = output({size}, DataType::FLOAT32, queries);
    p.scratch = scratch.data<float>();
  }
  cuda::paged_attention(type_of(queries, "qinfer_cuda_attention: queries"), p, stream);
  return {out};
}

}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_rotary_kv_write)
    .Inputs({"qkv", "table", "positions", "slots", "keys", "values", paddle::Optional("key_scales"),
             paddle::Optional("value_scales"), paddle::Optional("q_norm"),
             paddle::Optional("k_norm"), paddle::Optional("query_scale")})
    .Outputs({"queries"})
    .Attrs({"eps: float"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::rotary))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::queries))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_paged_attention)
    .Inputs({"queries", "keys", "values", "starts", "lengths", "tables",
             paddle::Optional("key_scales"), paddle::Optional("value_scales")})
    .Outputs({"out"})
    .Attrs({"scale: float", "window: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::attention))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::attention))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));
