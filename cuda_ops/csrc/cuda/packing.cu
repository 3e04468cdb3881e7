#include <cuda_fp8.h>

#include "common.cuh"
#include "packing.h"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <Format F>
constexpr float kLargest = F == Format::kInt8   ? 127.0f
                           : F == Format::kInt4 ? 7.0f
                                                : 448.0f;

// The operations and their order are numpy's, so that the codes are the same to the last bit.
template <Format F>
__device__ __forceinline__ float factor_of(float most) {
  return __fdiv_rn(kLargest<F>, most > 0 ? most : 1.0f);
}
template <Format F>
__device__ __forceinline__ uint8_t code_of(float x, float factor) {
  const float scaled = __fmul_rn(x, factor);
  if constexpr (F == Format::kE4M3) return __nv_cvt_float_to_fp8(scaled, __NV_SATFINITE, __NV_E4M3);
  const float away = truncf(__fadd_rn(scaled, copysignf(0.5f, scaled)));
  return static_cast<uint8_t>(static_cast<int8_t>(fminf(fmaxf(away, -kLargest<F>), kLargest<F>)));
}

// A block for each channel.
template <class T, Format F>
__global__ void __launch_bounds__(kThreads)
    channel_kernel(const T* weight, uint8_t* codes, float* scale, int64_t in) {
  __shared__ float found[kWarps];
  const T* row = weight + int64_t(blockIdx.x) * in;
  float most = 0;
  for (int64_t i = threadIdx.x; i < in; i += kThreads) most = fmaxf(most, fabsf(number(row[i])));
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) most = fmaxf(most, found[i]);
  if (threadIdx.x == 0) scale[blockIdx.x] = __fdiv_rn(most, kLargest<F>);
  const float factor = factor_of<F>(most);
  uint8_t* to = codes + int64_t(blockIdx.x) * in;
  for (int64_t i = threadIdx.x; i < in; i += kThreads) to[i] = code_of<F>(number(row[i]), factor);
}

// A warp for each group of a channel, two numbers a thread.
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_kernel(const T* weight, uint8_t* codes, float* scale, int64_t groups) {
  const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (group >= groups) return;
  const int64_t at = group * kPackedGroup + threadIdx.x % 32;
  const float a = number(weight[at]), b = number(weight[at + 32]);
  const float most = warp_max(fmaxf(fabsf(a), fabsf(b)));
  if (threadIdx.x % 32 == 0) scale[group] = __fdiv_rn(most, kLargest<Format::kInt4>);
  const float factor = factor_of<Format::kInt4>(most);
  codes[at] = code_of<Format::kInt4>(a, factor);
  codes[at + 32] = code_of<Format::kInt4>(b, factor);
}

template <class T>
void quantise(Format format, const void* weight, void* codes, float* scale, int64_t out, int64_t in,
              cudaStream_t stream) {
  const auto* from = static_cast<const T*>(weight);
  auto* to = static_cast<uint8_t*>(codes);
  if (format == Format::kInt4) {
    const int64_t groups = out * (in / kPackedGroup);
    launch(group_kernel<T>, dim3((groups + kWarps - 1) / kWarps), kThreads, 0, stream, from, to,
           scale, groups);
  } else if (format == Format::kInt8) {
    launch(channel_kernel<T, Format::kInt8>, dim3(out), kThreads, 0, stream, from, to, scale, in);
  } else {
    launch(channel_kernel<T, Format::kE4M3>, dim3(out), kThreads, 0, stream, from, to, scale, in);
  }
}

}  // namespace

void quantise_weight(Source source, Format format, const void* weight, void* codes, float* scale,
                     int64_t out, int64_t in, cudaStream_t stream) {
  if (source == Source::kBF16)
    quantise<BF16>(format, weight, codes, scale, out, in, stream);
  else if (source == Source::kF16)
    quantise<F16>(format, weight, codes, scale, out, in, stream);
  else
    quantise<float>(format, weight, codes, scale, out, in, stream);
}

}  // namespace qinfer::cuda
