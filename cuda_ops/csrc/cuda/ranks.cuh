// Numbers and their places in one order, for blocks of kThreads that look for the best.
#pragma once
#include "common.cuh"

namespace qinfer::cuda {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

// A number that orders as x does.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The number whose key that is.
__device__ __forceinline__ float number_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// Larger first, then the smaller index.
__device__ __forceinline__ unsigned long long rank_of(float x, int index) {
  return (static_cast<unsigned long long>(key_of(x)) << 32) | (0xffffffffu - unsigned(index));
}

// The largest of a block's, for every thread of it.
__device__ __forceinline__ unsigned long long block_best(unsigned long long best) {
  __shared__ unsigned long long found[kWarps];
#pragma unroll
  for (int d = 16; d; d /= 2) {
    const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, d);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = best;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) best = found[i] > best ? found[i] : best;
  __syncthreads();
  return best;
}

// The sum of a block's, for every thread of it.
template <class X>
__device__ __forceinline__ X block_sum(X x) {
  __shared__ X found[kWarps];
#pragma unroll
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int i = 0; i < kWarps; ++i) x += found[i];
  __syncthreads();
  return x;
}

}  // namespace qinfer::cuda
