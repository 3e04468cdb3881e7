#include <cuda_fp8.h>

#include <type_traits>

#include "rounding.h"
#include "weights.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

template <Code C>
constexpr float kLargest = C == Code::kInt8 ? 127.0f : 448.0f;

template <Code C>
__device__ __forceinline__ uint32_t code_of(float x) {
  if constexpr (C == Code::kInt8)
    return static_cast<uint32_t>(__float2int_rn(fminf(fmaxf(x, -128.0f), 127.0f))) & 255u;
  else
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

template <class T, Code C>
__device__ __forceinline__ void numbers_of(uint32_t codes, uint32_t& low, uint32_t& high) {
  if constexpr (C == Code::kInt8)
    from_int8<T>(codes, low, high);
  else
    from_e4m3<T>(codes, low, high);
}

// A block for each run of a row.
template <class T, Code C, bool Bytes>
__global__ void __launch_bounds__(kThreads) round_kernel(const Rounding r) {
  let_next_start();
  wait_for_previous();
  const int64_t row = int64_t(blockIdx.x) * r.width;
  const int64_t first = r.run ? blockIdx.y * r.run : 0;
  const int64_t end = r.run ? min(first + r.run, r.width) : r.width;
  const T* x = static_cast<const T*>(r.x) + row;
  float v[8], step;
  if (r.fixed) {
    step = *r.fixed;
  } else {
    float most = 0;
    for (int64_t i = first + threadIdx.x * 8; i < end; i += kThreads * 8) {
      unpack8<T>(*reinterpret_cast<const uint4*>(x + i), v);
#pragma unroll
      for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(v[j]));
    }
    __shared__ float found[kWarps];
    most = warp_max(most);
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = most;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarps; ++i) most = fmaxf(most, found[i]);
    step = fmaxf(__fdiv_rn(most, kLargest<C>), 1e-30f);
  }
  if (threadIdx.x == 0 && !r.run) r.scale[blockIdx.x] = step;
  for (int64_t i = first + threadIdx.x * 8; i < end; i += kThreads * 8) {
    unpack8<T>(*reinterpret_cast<const uint4*>(x + i), v);
    uint32_t codes[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; ++j) codes[j / 4] |= code_of<C>(__fdiv_rn(v[j], step)) << (j % 4 * 8);
    if constexpr (Bytes) {
      *reinterpret_cast<uint2*>(static_cast<uint8_t*>(r.rounded) + row + i) = {codes[0], codes[1]};
    } else {
      uint4 out;
      numbers_of<T, C>(codes[0], out.x, out.y);
      numbers_of<T, C>(codes[1], out.z, out.w);
      if (r.run) {
        unpack8<T>(out, v);
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] *= step;
        out = pack8<T>(v);
      }
      *reinterpret_cast<uint4*>(static_cast<T*>(r.rounded) + row + i) = out;
    }
  }
}

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

template <class T, Code C>
void round_coded(const Rounding& r, cudaStream_t stream) {
  const dim3 grid(r.rows, r.run ? (r.width + r.run - 1) / r.run : 1);
  launch(r.as_bytes ? round_kernel<T, C, true> : round_kernel<T, C, false>, grid, kThreads, 0,
         stream, r);
}

template <class T>
void round_typed(Code code, const Rounding& r, cudaStream_t stream) {
  if (code == Code::kInt8)
    round_coded<T, Code::kInt8>(r, stream);
  else
    round_coded<T, Code::kE4M3>(r, stream);
}

dim3 by_columns(int64_t rows, int64_t width) {
  return dim3(rows, (width + kThreads - 1) / kThreads);
}

}  // namespace

void round_inputs(Type type, Code code, const Rounding& r, cudaStream_t stream) {
  if (!r.rows) return;
  if (type == Type::kBF16)
    round_typed<BF16>(code, r, stream);
  else
    round_typed<F16>(code, r, stream);
}

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
