// Products as Paddle custom operators.
#include "../infer.h"
#include "products.h"

namespace qinfer::cuda {
namespace {

std::vector<Tensor> linear(const Tensor& x, const Tensor& weight, const Optional& scale,
                           const Optional& bias, int64_t format, int64_t out) {
  const Operands o = operands(x, x.shape()[1], weight, scale, bias, format, out);
  Tensor y = output({o.rows, out}, x.dtype(), x);
  Spaces spaces(x);
  multiply(o, x.data(), y.data(), spaces);
  return {y};
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

PD_BUILD_OP(qinfer_cuda_pack_int4)
    .Inputs({"weight"})
    .Outputs({"packed"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::pack));
