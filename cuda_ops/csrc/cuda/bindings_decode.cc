// Attention of decoding, straight from the QKV product, as a Paddle custom operator.
#include "tensors.h"

namespace qinfer::cuda {
namespace {

using Optional = paddle::optional<Tensor>;

Format held_in(const Tensor& cache, const Tensor& qkv) {
  if (cache.dtype() == DataType::INT8) return Format::kInt8;
  if (cache.dtype() == DataType::FLOAT8_E4M3FN) return Format::kE4M3;
  PD_CHECK(cache.dtype() == qkv.dtype(),
           "qinfer_cuda_decode: the KV cache must be int8, e4m3 or of the activations' type");
  return Format::kPlain;
}

const void* vector(const Optional& x, const Tensor& qkv, int64_t size) {
  if (!x) return nullptr;
  PD_CHECK(x->dtype() == qkv.dtype() && (size < 0 || x->numel() == size),
           "qinfer_cuda_decode: norms must be [dim], and they and scales of the activations' type");
  return x->data();
}

float* scales(Optional& x, const Tensor& cache, bool& is_static) {
  PD_CHECK(x && x->dtype() == DataType::FLOAT32, "qinfer_cuda_decode: such a cache needs scales");
  is_static = x->shape().size() == 1;
  PD_CHECK(x->numel() == (is_static ? cache.shape()[2] : cache.numel() / cache.shape()[3]),
           "qinfer_cuda_decode: scales must be [blocks, block_size, kv_heads] or [kv_heads]");
  return x->data<float>();
}

std::vector<Tensor> attend(const Tensor& qkv, const Tensor& table, const Tensor& positions,
                           const Tensor& slots, const Tensor& lengths, const Tensor& tables,
                           Tensor& keys, Tensor& values, const Optional& q_norm,
                           const Optional& k_norm, const Optional& query_scale,
                           Optional& key_scales, Optional& value_scales, double eps, double scale,
                           int64_t window) {
  Decode d = {};
  const Shape shape = keys.shape();
  d.block_size = shape[1], d.kv_heads = shape[2], d.dim = shape[3];
  d.heads = qkv.shape()[1] / d.dim - 2 * d.kv_heads;
  PD_CHECK(
      table.shape()[1] == 2 * d.dim && values.dtype() == keys.dtype() && values.shape() == shape,
      "qinfer_cuda_decode: another head size or cache than the table's or the keys'");
  d.qkv = qkv.data(), d.keys = keys.data(), d.values = values.data();
  d.held = held_in(keys, qkv), d.eps = static_cast<float>(eps);
  if (d.held != Format::kPlain) {
    d.key_scales = scales(key_scales, keys, d.is_static);
    d.value_scales = scales(value_scales, keys, d.is_static);
  }
  d.q_norm = vector(q_norm, qkv, d.dim), d.k_norm = vector(k_norm, qkv, d.dim);
  d.query_scale = vector(query_scale, qkv, -1);
  PD_CHECK(decode_knows(d.dim), "qinfer_cuda_decode: the head size must be 16, 32, 64 or 128");
  d.sequences = qkv.shape()[0], d.width = tables.shape()[1];
  PD_CHECK(lengths.numel() == d.sequences, "qinfer_cuda_decode: one token for each sequence");
  d.rotary = floats(table, "qinfer_cuda_decode: table");
  d.positions = longs(positions, "qinfer_cuda_decode: positions");
  d.slots = longs(slots, "qinfer_cuda_decode: slots");
  d.lengths = ints(lengths, "qinfer_cuda_decode: lengths");
  d.tables = ints(tables, "qinfer_cuda_decode: tables");
  d.scale = static_cast<float>(scale), d.window = static_cast<int>(window);
  Tensor out = output({d.sequences, d.heads * d.dim}, qkv.dtype(), qkv), scratch;
  d.out = out.data();
  if (const int64_t size = decode_scratch(d)) {
    scratch = output({size}, DataType::FLOAT32, qkv);
    d.scratch = scratch.data<float>();
  }
  cuda::decode(type_of(qkv, "qinfer_cuda_decode: qkv"), d, stream_of(qkv));
  return {out};
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_decode)
    .Inputs({"qkv", "table", "positions", "slots", "lengths", "tables", "keys", "values",
             paddle::Optional("q_norm"), paddle::Optional("k_norm"),
             paddle::Optional("query_scale"), paddle::Optional("key_scales"),
             paddle::Optional("value_scales")})
    .Outputs({"out"})
    .Attrs({"eps: double", "scale: double", "window: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::attend));
