// The CUDA operators that are no products, as Paddle custom operators. Shapes and types are checked
// here; the kernels trust them.
#include "../infer.h"
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

// Of as many rows as there are, x itself: they are all of them, in order.
std::vector<Tensor> taken_rows(const Tensor& x, const Tensor& rows) {
  return rows.shape()[0] == x.shape()[0] ? std::vector<Tensor>{x} : cuda::gather(x, rows);
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

Norm of_rows(const Tensor& x, const Tensor& weight, float eps, Tensor& y) {
  check_norm(x, weight);
  Norm n{};
  n.x = x.data(), n.weight = weight.data(), n.eps = eps, n.y = y.data();
  n.rows = x.shape()[0], n.width = x.shape()[1];
  return n;
}

std::vector<Tensor> norm(const Tensor& x, const Tensor& weight, float eps) {
  Tensor y = output(x.shape(), x.dtype(), x);
  rms_norm(type_of(x, "qinfer_cuda_rms_norm: x"), of_rows(x, weight, eps, y), stream_of(x));
  return {y};
}

std::vector<Tensor> add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight,
                             float eps) {
  PD_CHECK(residual.shape() == x.shape() && residual.dtype() == x.dtype(),
           "qinfer_cuda_add_rms_norm: the residual must be as x");
  Tensor y = output(x.shape(), x.dtype(), x), total = output(x.shape(), x.dtype(), x);
  Norm n = of_rows(x, weight, eps, y);
  n.residual = residual.data(), n.total = total.data();
  rms_norm(type_of(x, "qinfer_cuda_add_rms_norm: x"), n, stream_of(x));
  return {y, total};
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
    .SetKernelFn(PD_KERNEL(qinfer::cuda::gather))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::gathered))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_take_rows)
    .Inputs({"x", "rows"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::taken_rows))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::gathered))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_silu_gate)
    .Inputs({"x"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::silu))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::half_the_width))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_read)
    .Inputs({"x"})
    .Outputs({"sum"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::read));

PD_BUILD_OP(qinfer_cuda_to_float32)
    .Inputs({"x"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::float32))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::floats));

PD_BUILD_OP(qinfer_cuda_rms_norm)
    .Inputs({"x", "weight"})
    .Outputs({"y"})
    .Attrs({"eps: float"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::norm))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::same));

PD_BUILD_OP(qinfer_cuda_add_rms_norm)
    .Inputs({"x", "residual", "weight"})
    .Outputs({"y", "total"})
    .Attrs({"eps: float"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::add_norm))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::two_alike))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::two_same));

PD_BUILD_OP(qinfer_cuda_argmax)
    .Inputs({"logits"})
    .Outputs({"tokens"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::best))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::one_a_row))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::indices));

PD_BUILD_OP(qinfer_cuda_sample)
    .Inputs({"logits", "temperature", "top_k", "top_p", "min_p", "uniform"})
    .Outputs({"tokens"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::draw))
    .SetInferShapeFn(PD_INFER_SHAPE(qinfer::infer::one_a_row))
    .SetInferDtypeFn(PD_INFER_DTYPE(qinfer::infer::indices));

PD_BUILD_OP(qinfer_cuda_token_logprobs)
    .Inputs({"logits", "chosen"})
    .Outputs({"picked", "top", "ids"})
    .Attrs({"count: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::logprobs));

PD_BUILD_OP(qinfer_cuda_edit_logits)
    .Inputs({"logits", "rows", "tokens", "scale", "bias"})
    .Outputs({"edited"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::edit));
