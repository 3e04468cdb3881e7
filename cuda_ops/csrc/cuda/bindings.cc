// The CUDA operators that are no products, as Paddle custom operators. Shapes and types are checked
// here; the kernels trust them.
#include "tensors.h"

namespace qinfer::cuda {
namespace {

// The other types are rejected where a tensor's type is first asked for.
constexpr int64_t kChunk = 8;  // 16-bit numbers in the 16 bytes the kernels read at a time

std::vector<Tensor> gather(const Tensor& table, const Tensor& rows) {
  const Shape shape = table.shape();
  const int64_t bytes = shape[1] * static_cast<int64_t>(phi::SizeOf(table.dtype()));
  PD_CHECK(bytes % 16 == 0, "qinfer_cuda_gather: a row must be a multiple of 16 bytes");
  const int64_t count = rows.shape()[0];
  Tensor out = output({count, shape[1]}, table.dtype(), table);
  gather_rows(table.data(), longs(rows, "qinfer_cuda_gather: rows"), out.data(), count, shape[0],
              bytes, stream_of(table));
  return {out};
}

std::vector<Tensor> silu(const Tensor& x) {
  const int64_t rows = x.shape()[0], width = x.shape()[1] / 2;
  PD_CHECK(width % kChunk == 0, "qinfer_cuda_silu_gate: the width must be a multiple of 8");
  Tensor y = output({rows, width}, x.dtype(), x);
  silu_gate(type_of(x, "qinfer_cuda_silu_gate: x"), x.data(), y.data(), rows, width, stream_of(x));
  return {y};
}

// For measuring: reads x.
std::vector<Tensor> read(const Tensor& x) {
  Tensor sum = output({1}, DataType::INT32, x);
  read_memory(x.data(), x.numel() * static_cast<int64_t>(phi::SizeOf(x.dtype())),
              reinterpret_cast<unsigned*>(sum.data()), stream_of(x));
  return {sum};
}

std::vector<Tensor> float32(const Tensor& x) {
  Tensor y = output(x.shape(), DataType::FLOAT32, x);
  to_float32(type_of(x, "qinfer_cuda_to_float32: x"), x.data(), y.data<float>(), x.numel(),
             stream_of(x));
  return {y};
}

void check_norm(const Tensor& x, const Tensor& weight) {
  const int64_t width = x.shape()[1];
  PD_CHECK(width % kChunk == 0 && width <= 16384,
           "qinfer_cuda_rms_norm: the width must be a multiple of 8 up to 16384");
  PD_CHECK(weight.dtype() == x.dtype() && weight.numel() == width,
           "qinfer_cuda_rms_norm: the weight must be [width] of x's type");
}

std::vector<Tensor> norm(const Tensor& x, const Tensor& weight, double eps) {
  check_norm(x, weight);
  Tensor y = output(x.shape(), x.dtype(), x);
  rms_norm(type_of(x, "qinfer_cuda_rms_norm: x"), x.data(), nullptr, weight.data(),
           static_cast<float>(eps), y.data(), nullptr, x.shape()[0], x.shape()[1], stream_of(x));
  return {y};
}

std::vector<Tensor> add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                             double eps) {
  check_norm(x, weight);
  PD_CHECK(residual.shape() == x.shape() && residual.dtype() == x.dtype(),
           "qinfer_cuda_add_rms_norm: the residual must be as x");
  Tensor y = output(x.shape(), x.dtype(), x), total = output(x.shape(), x.dtype(), x);
  rms_norm(type_of(x, "qinfer_cuda_add_rms_norm: x"), x.data(), residual.data(), weight.data(),
           static_cast<float>(eps), y.data(), total.data(), x.shape()[0], x.shape()[1],
           stream_of(x));
  return {y, total};
}

Format held_in(const Tensor& cache, const Tensor& computed) {
  if (cache.dtype() == DataType::INT8) return Format::kInt8;
  if (cache.dtype() == DataType::FLOAT8_E4M3FN) return Format::kE4M3;
  PD_CHECK(cache.dtype() == computed.dtype(),
           "qinfer_cuda: the KV cache must be int8, e4m3 or of the activations' type");
  return Format::kPlain;
}

std::vector<Tensor> rotary(const Tensor& qkv, const Tensor& table, const Tensor& positions,
                           const Tensor& slots, Tensor& keys, Tensor& values,
                           const paddle::optional<Tensor>& key_scales,
                           const paddle::optional<Tensor>& value_scales,
                           const paddle::optional<Tensor>& q_norm,
                           const paddle::optional<Tensor>& k_norm,
                           const paddle::optional<Tensor>& query_scale, double eps) {
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
  r.held = held_in(keys, qkv), r.eps = static_cast<float>(eps);
  if (r.held != Format::kPlain) {
    PD_CHECK(key_scales && value_scales, "qinfer_cuda_rotary: the KV cache has no scales");
    r.is_static = key_scales->shape().size() == 1;
    r.key_scales = const_cast<float*>(floats(*key_scales, "qinfer_cuda_rotary: key_scales"));
    r.value_scales = const_cast<float*>(floats(*value_scales, "qinfer_cuda_rotary: value_scales"));
  }
  const auto of = [&](const paddle::optional<Tensor>& given) -> const void* {
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
                              const paddle::optional<Tensor>& key_scales,
                              const paddle::optional<Tensor>& value_scales, double scale,
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
  p.heads = q[1], p.dim = q[2], p.scale = static_cast<float>(scale);
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

std::vector<Tensor> best(const Tensor& logits) {
  Tensor out = output({logits.shape()[0]}, DataType::INT64, logits);
  cuda::argmax(floats(logits, "qinfer_cuda_argmax: logits"), out.data<int64_t>(), logits.shape()[0],
               logits.shape()[1], stream_of(logits));
  return {out};
}

std::vector<Tensor> draw(const Tensor& logits, const Tensor& temperature, const Tensor& top_k,
                         const Tensor& top_p, const Tensor& min_p, const Tensor& uniform) {
  Tensor out = output({logits.shape()[0]}, DataType::INT64, logits);
  const Sampling s{floats(logits, "qinfer_cuda_sample: logits"),
                   floats(temperature, "qinfer_cuda_sample: temperature"),
                   floats(top_p, "qinfer_cuda_sample: top_p"),
                   floats(min_p, "qinfer_cuda_sample: min_p"),
                   floats(uniform, "qinfer_cuda_sample: uniform"),
                   longs(top_k, "qinfer_cuda_sample: top_k"),
                   out.data<int64_t>(),
                   logits.shape()[0],
                   logits.shape()[1]};
  cuda::sample(s, stream_of(logits));
  return {out};
}

std::vector<Tensor> logprobs(const Tensor& logits, const Tensor& chosen, int64_t count) {
  const int64_t rows = logits.shape()[0], width = logits.shape()[1];
  PD_CHECK(count >= 0 && count <= width && chosen.numel() == rows,
           "qinfer_cuda_token_logprobs: more tokens wanted than there are");
  Tensor picked = output({rows}, DataType::FLOAT32, logits);
  Tensor top = output({rows, count}, DataType::FLOAT32, logits);
  Tensor ids = output({rows, count}, DataType::INT64, logits);
  const Logprobs l{floats(logits, "qinfer_cuda_token_logprobs: logits"),
                   longs(chosen, "qinfer_cuda_token_logprobs: chosen"),
                   picked.data<float>(),
                   top.data<float>(),
                   ids.data<int64_t>(),
                   rows,
                   width,
                   count};
  cuda::token_logprobs(l, stream_of(logits));
  return {picked, top, ids};
}

std::vector<Tensor> edit(const Tensor& logits, const Tensor& rows, const Tensor& tokens,
                         const Tensor& scale, const Tensor& bias) {
  Tensor out = output(logits.shape(), DataType::FLOAT32, logits);
  cuda::edit_logits(floats(logits, "qinfer_cuda_edit_logits: logits"),
                    longs(rows, "qinfer_cuda_edit_logits: rows"),
                    longs(tokens, "qinfer_cuda_edit_logits: tokens"),
                    floats(scale, "qinfer_cuda_edit_logits: scale"),
                    floats(bias, "qinfer_cuda_edit_logits: bias"), out.data<float>(),
                    rows.shape()[0], logits.shape()[0], logits.shape()[1], stream_of(logits));
  return {out};
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_gather)
    .Inputs({"table", "rows"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::gather));

PD_BUILD_OP(qinfer_cuda_silu_gate)
    .Inputs({"x"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::silu));

PD_BUILD_OP(qinfer_cuda_read)
    .Inputs({"x"})
    .Outputs({"sum"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::read));

PD_BUILD_OP(qinfer_cuda_to_float32)
    .Inputs({"x"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::float32));

PD_BUILD_OP(qinfer_cuda_rms_norm)
    .Inputs({"x", "weight"})
    .Outputs({"y"})
    .Attrs({"eps: double"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::norm));

PD_BUILD_OP(qinfer_cuda_add_rms_norm)
    .Inputs({"x", "residual", "weight"})
    .Outputs({"y", "total"})
    .Attrs({"eps: double"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::add_norm));

PD_BUILD_OP(qinfer_cuda_rotary_kv_write)
    .Inputs({"qkv", "table", "positions", "slots", "keys", "values", paddle::Optional("key_scales"),
             paddle::Optional("value_scales"), paddle::Optional("q_norm"),
             paddle::Optional("k_norm"), paddle::Optional("query_scale")})
    .Outputs({"queries"})
    .Attrs({"eps: double"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::rotary));

PD_BUILD_OP(qinfer_cuda_paged_attention)
    .Inputs({"queries", "keys", "values", "starts", "lengths", "tables",
             paddle::Optional("key_scales"), paddle::Optional("value_scales")})
    .Outputs({"out"})
    .Attrs({"scale: double", "window: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::attention));

PD_BUILD_OP(qinfer_cuda_argmax)
    .Inputs({"logits"})
    .Outputs({"tokens"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::best));

PD_BUILD_OP(qinfer_cuda_sample)
    .Inputs({"logits", "temperature", "top_k", "top_p", "min_p", "uniform"})
    .Outputs({"tokens"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::draw));

PD_BUILD_OP(qinfer_cuda_token_logprobs)
    .Inputs({"logits", "chosen"})
    .Outputs({"picked", "top", "ids"})
    .Attrs({"count: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::logprobs));

PD_BUILD_OP(qinfer_cuda_edit_logits)
    .Inputs({"logits", "rows", "tokens", "scale", "bias"})
    .Outputs({"edited"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::edit));
