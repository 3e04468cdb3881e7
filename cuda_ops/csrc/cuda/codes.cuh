// Rounding numbers to eight bits, a row's or a run's largest magnitude being the largest code.
#pragma once
#include <cuda_fp8.h>

#include "rounding.h"
#include "weights.cuh"

namespace qinfer::cuda {

// What a row becomes: as it is, its codes as numbers of its type, its codes as bytes.
enum class To { kNumbers, kRounded, kBytes };

template <Code C>
constexpr float kLargest = C == Code::kInt8 ? 127.0f : 448.0f;

// The scale of numbers whose largest magnitude is `most`.
template <Code C>
__device__ __forceinline__ float step_of(float most) {
  return fmaxf(__fdiv_rn(most, kLargest<C>), 1e-30f);
}

template <class T>
__device__ __forceinline__ float most_of(const uint4& numbers, float most) {
  float v[8];
  unpack8<T>(numbers, v);
#pragma unroll
  for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(v[j]));
  return most;
}

// The largest of what a block's threads have found; for once in a kernel.
__device__ __forceinline__ float block_max(float most) {
  __shared__ float found[32];
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = most;
  __syncthreads();
  for (int i = 0; i < blockDim.x / 32; ++i) most = fmaxf(most, found[i]);
  return most;
}

// Two numbers' codes.
template <Code C>
__device__ __forceinline__ uint32_t codes_of(float low, float high) {
  if constexpr (C == Code::kInt8) {
    const auto code = [](float x) {
      return uint32_t(__float2int_rn(fminf(fmaxf(x, -128.0f), 127.0f))) & 255u;
    };
    return code(low) | code(high) << 8;
  } else {
    return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
  }
}

template <class T, Code C>
__device__ __forceinline__ void numbers_of(uint32_t codes, uint32_t& low, uint32_t& high) {
  if constexpr (C == Code::kInt8)
    from_int8<T>(codes, low, high);
  else
    from_e4m3<T>(codes, low, high);
}

// The codes of eight numbers over their step. The quotients themselves, not products with the
// inverse: 16-bit numbers fall halfway between two codes often enough for it to show.
template <class T, Code C>
__device__ __forceinline__ uint2 rounded8(const uint4& numbers, float step) {
  const float inverse = 1.0f / step;
  float v[8];
  unpack8<T>(numbers, v);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float near = v[j] * inverse;
    v[j] = fmaf(fmaf(-near, step, v[j]), inverse, near);
  }
  return {codes_of<C>(v[0], v[1]) | codes_of<C>(v[2], v[3]) << 16,
          codes_of<C>(v[4], v[5]) | codes_of<C>(v[6], v[7]) << 16};
}

template <class T, Code C>
__device__ __forceinline__ uint4 numbers8(uint2 codes) {
  uint4 numbers;
  numbers_of<T, C>(codes.x, numbers.x, numbers.y);
  numbers_of<T, C>(codes.y, numbers.z, numbers.w);
  return numbers;
}

// Numbers `at` to `at` + 7 of a tensor, rounded.
template <class T, Code C, To Kind>
__device__ __forceinline__ void put8(const uint4& numbers, float step, void* to, int64_t at) {
  const uint2 codes = rounded8<T, C>(numbers, step);
  if constexpr (Kind == To::kBytes)
    *reinterpret_cast<uint2*>(static_cast<uint8_t*>(to) + at) = codes;
  else
    *reinterpret_cast<uint4*>(static_cast<T*>(to) + at) = numbers8<T, C>(codes);
}

}  // namespace qinfer::cuda
