// What changes activations before a product or its result after, and weights in groups of any size.
#include "columns.h"
#include "common.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

template <class T>
__global__ void dequantise_kernel(const int8_t* weight, const float* scale, T* w, int64_t in,
                                  int64_t group) {
  wait_for_previous();
  const int64_t channel = blockIdx.x;
  for (int64_t i = threadIdx.x; i < in; i += kThreads)
    w[channel * in + i] = T(weight[channel * in + i] * scale[channel * (in / group) + i / group]);
}

template <class T>
__global__ void scale_kernel(const T* x, const float* scale, const float* shift, T* y, int width) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.y * kThreads + threadIdx.x;
  if (i >= width) return;
  const int64_t at = int64_t(blockIdx.x) * width + i;
  float v = number(x[at]);
  if (shift) v += shift[i];
  if (scale) v *= scale[i];
  y[at] = T(v);
}

__global__ void column_kernel(const uint16_t* x, const int64_t* columns, uint16_t* y, int64_t from,
                              int64_t to) {
  let_next_start();
  wait_for_previous();
  const int64_t i = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  if (i < to) y[blockIdx.x * to + i] = x[blockIdx.x * from + columns[i]];
}

// A block for 128 outputs of a row; it adds up the row's groups for itself.
template <class T>
__global__ void __launch_bounds__(kThreads) zero_kernel(const ZeroPoints z) {
  constexpr int kGroups = 1024;  // at a time
  __shared__ float sums[kGroups];
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t size = z.in / z.groups, channel = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  const T* x = static_cast<const T*>(z.x) + blockIdx.x * z.in;
  float total = 0;
  for (int64_t begin = 0; begin < z.groups; begin += kGroups) {
    const int count = static_cast<int>(min(int64_t(kGroups), z.groups - begin));
    __syncthreads();
    for (int i = warp; i < count; i += kWarps) {
      float sum = 0;
      for (int64_t j = lane; j < size; j += 32) sum += number(x[(begin + i) * size + j]);
      sum = warp_sum(sum);
      if (lane == 0) sums[i] = sum;
    }
    __syncthreads();
    if (channel < z.out)
      for (int i = 0; i < count; ++i) total += sums[i] * z.zero[(begin + i) * z.out + channel];
  }
  if (channel >= z.out) return;
  const int64_t at = blockIdx.x * z.out + channel;
  static_cast<T*>(z.total)[at] = T(number(static_cast<const T*>(z.y)[at]) + total);
}

dim3 by_columns(int64_t rows, int64_t width) {
  return dim3(rows, (width + kThreads - 1) / kThreads);
}

}  // namespace

void dequantise_groups(Type type, const int8_t* weight, const float* scale, void* w, int64_t out,
                       int64_t in, int64_t group, cudaStream_t stream) {
  if (type == Type::kBF16)
    launch(dequantise_kernel<BF16>, dim3(out), kThreads, 0, stream, weight, scale,
           static_cast<BF16*>(w), in, group);
  else
    launch(dequantise_kernel<F16>, dim3(out), kThreads, 0, stream, weight, scale,
           static_cast<F16*>(w), in, group);
}

void scale_shift(Type type, const void* x, const float* scale, const float* shift, void* y,
                 int64_t rows, int64_t width, cudaStream_t stream) {
  if (!rows) return;
  const dim3 grid = by_columns(rows, width);
  if (type == Type::kBF16)
    launch(scale_kernel<BF16>, grid, kThreads, 0, stream, static_cast<const BF16*>(x), scale, shift,
           static_cast<BF16*>(y), static_cast<int>(width));
  else
    launch(scale_kernel<F16>, grid, kThreads, 0, stream, static_cast<const F16*>(x), scale, shift,
           static_cast<F16*>(y), static_cast<int>(width));
}

void take_columns(const void* x, const int64_t* columns, void* y, int64_t rows, int64_t from,
                  int64_t to, cudaStream_t stream) {
  if (!rows) return;
  launch(column_kernel, by_columns(rows, to), kThreads, 0, stream, static_cast<const uint16_t*>(x),
         columns, static_cast<uint16_t*>(y), from, to);
}

void add_zero_points(Type type, const ZeroPoints& z, cudaStream_t stream) {
  if (!z.rows) return;
  launch(type == Type::kBF16 ? zero_kernel<BF16> : zero_kernel<F16>, by_columns(z.rows, z.out),
         kThreads, 0, stream, z);
}

}  // namespace qinfer::cuda
