// Attention straight from the QKV product, as a Paddle custom operator: by one kernel where each
// sequence brings one token. Which it is a program learns when it runs.
#include "../infer.h"
#include "bindings_attention.h"

namespace qinfer::cuda {
namespace {

const void* vector(const Optional& x, const Tensor& qkv, int64_t size) {
  if (!x) return nullptr;
  PD_CHECK(x->dtype() == qkv.dtype() && (size < 0 || x->numel() == size),
           "qinfer_cuda_attend: norms must be [dim], and they and scales of the activations' type");
  return x->data();
}

float* scales(const Optional& x, const Tensor& cache, bool& is_static) {
  PD_CHECK(x && x->dtype() == DataType::FLOAT32, "qinfer_cuda_attend: such a cache needs scales");
  is_static = x->shape().size() == 1;
  PD_CHECK(x->numel() == (is_static ? cache.shape()[2] : cache.numel() / cache.shape()[3]),
           "qinfer_cuda_attend: scales must be [blocks, block_size, kv_heads] or [kv_heads]");
  return const_cast<float*>(x->data<float>());
}

std::vector<Tensor> decoded(const Tensor& qkv, const Tensor& table, const Tensor& positions,
                            const Tensor& slots, Tensor& keys, Tensor& values,
                            const Optional& key_scales, const Optional& value_scales,
                            const Optional& q_norm, const Optional& k_norm,
                            const Optional& query_scale, const Tensor& lengths,
                            const Tensor& tables, float eps, float scale, int64_t window) {
  Decode d = {};
  const Shape shape = keys.shape();
  d.block_size = shape[1], d.kv_heads = shape[2], d.dim = shape[3];
  d.heads = qkv.shape()[1] / d.dim - 2 * d.kv_heads;
  PD_CHECK(
      table.shape()[1] == 2 * d.dim && values.dtype() == keys.dtype() && values.shape() == shape,
      "qinfer_cuda_attend: another head size or cache than the table's or the keys'");
  d.qkv = qkv.data(), d.keys = keys.data(), d.values = values.data();
  d.held = held_in(keys, qkv), d.eps = eps;
  if (d.held != Format::kPlain) {
    d.key_scales = scales(key_scales, keys, d.is_static);
    d.value_scales = scales(value_scales, keys, d.is_static);
  }
  d.q_norm = vector(q_norm, qkv, d.dim), d.k_norm = vector(k_norm, qkv, d.dim);
  d.query_scale = vector(query_scale, qkv, -1);
  d.sequences = qkv.shape()[0], d.width = tables.shape()[1];
  d.rotary = floats(table, "qinfer_cuda_attend: table");
  d.positions = longs(positions, "qinfer_cuda_attend: positions");
  d.slots = longs(slots, "qinfer_cuda_attend: slots");
  d.lengths = ints(lengths, "qinfer_cuda_attend: lengths");
  d.tables = ints(tables, "qinfer_cuda_attend: tables");
  d.scale = scale, d.window = static_cast<int>(window);
  Tensor out = output({d.sequences, d.heads * d.dim}, qkv.dtype(), qkv), scratch;
  d.out = out.data();
  if (const int64_t size = decode_scratch(d)) {
    scratch = output({size}, DataType::FLOAT32, qkv);
    d.scratch = scratch.data<float>();
  }
  cuda::decode(type_of(qkv, "qinfer_cuda_attend: qkv"), d, stream_of(qkv));
  return {out};
}

std::vector<Tensor> attend(const Tensor& qkv, const Tensor& table, const Tensor& positions,
                           const Tensor& slots, Tensor& keys, Tensor& values,
                           const Optional& key_scales, const Optional& value_scales,
                           const Optional& q_norm, const Optional& k_norm,
                           const Optional& query_scale, const Tensor& starts, const Tensor& lengths,
                           const Tensor& tables, float eps, float scale, int64_t window) {
  if (lengths.numel() == qkv.shape()[0] && decode_knows(keys.shape()[3]))
    return decoded(qkv, table, positions, slots, keys, values, key_scales, value_scales, q_norm,
                   k_norm, query_scale, lengths, tables, eps, scale, window);
  const Tensor queries = rotary(qkv, table, positions, slots, keys, values, key_scales,
                                value_scales, q_norm, k_norm, query_scale, eps)[0];
  return attention(queries, keys, values, starts, lengths, tables, key_scales, value_scales, scale,
                   window);
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_attend)
    .Inputs({"qkv", "table", "positions", "slots", "keys", "values", paddle::Optional("key_scales"),
             paddle::Optional("value_scales"), paddle::Optional("q_norm"),
             paddle::Optional("k_norm"), paddle::Optional("query_scale"), "starts", "lengths",
             "tables"})
    .Outputs({"out"})
    .Attrs({"eps: float", "scale: float", "window: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::attend))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::attended))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));
