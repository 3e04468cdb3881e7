// Quantising weights as a Paddle custom operator.
#include "packing.h"
#include "tensors.h"

namespace qinfer::cuda {
namespace {

// Ends when it is done: products may read their weights before the kernels queued ahead of them
// have ended, and the weight that was given may be dropped.
std::vector<Tensor> quantised(const Tensor& weight, int64_t number) {
  PD_CHECK(number >= 1 && number <= 3, "qinfer_cuda_quantise: unknown weight format");
  const auto format = static_cast<Format>(number);
  const int64_t out = weight.shape()[0], in = weight.shape()[1];
  const bool groups = format == Format::kInt4;
  PD_CHECK(!groups || in % kPackedGroup == 0,
           "qinfer_cuda_quantise: int4 needs a multiple of 64 inputs");
  const DataType held = weight.dtype();
  PD_CHECK(held == DataType::BFLOAT16 || held == DataType::FLOAT16 || held == DataType::FLOAT32,
           "qinfer_cuda_quantise: the weight must be of a floating type");
  const Source source = held == DataType::BFLOAT16  ? Source::kBF16
                        : held == DataType::FLOAT16 ? Source::kF16
                                                    : Source::kFloat;
  const DataType kept = format == Format::kE4M3 ? DataType::FLOAT8_E4M3FN : DataType::INT8;
  Tensor codes = output({out, in}, kept, weight);
  Tensor scale =
      output(groups ? Shape{out, in / kPackedGroup} : Shape{out}, DataType::FLOAT32, weight);
  const cudaStream_t stream = stream_of(weight);
  quantise_weight(source, format, weight.data(), codes.data(), scale.data<float>(), out, in,
                  stream);
  check(cudaStreamSynchronize(stream), "quantising a weight");
  return {codes, scale};
}

}  // namespace
}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_quantise)
    .Inputs({"weight"})
    .Outputs({"codes", "scale"})
    .Attrs({"format: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::quantised));
