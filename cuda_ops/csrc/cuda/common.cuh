// What the kernels share: 16-bit numbers two at a time, sums over a warp, and launching.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace qinfer::cuda {

using BF16 = __nv_bfloat16;
using F16 = __half;

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t bits);
template <>
__device__ __forceinline__ float2 unpack<BF16>(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
template <>
__device__ __forceinline__ float2 unpack<F16>(uint32_t bits) {
  return __half22float2(*reinterpret_cast<__half2*>(&bits));
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<BF16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
template <>
__device__ __forceinline__ uint32_t pack<F16>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

template <class T>
__device__ __forceinline__ float number(T x) {
  return static_cast<float>(x);
}

// Eight 16-bit numbers, as one load brings them.
template <class T>
__device__ __forceinline__ void unpack8(const uint4& from, float (&to)[8]) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 both = unpack<T>(words[i]);
    to[2 * i] = both.x, to[2 * i + 1] = both.y;
  }
}
template <class T>
__device__ __forceinline__ uint4 pack8(const float (&from)[8]) {
  return {pack<T>(from[0], from[1]), pack<T>(from[2], from[3]), pack<T>(from[4], from[5]),
          pack<T>(from[6], from[7])};
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
  return x;
}

// Of magnitudes, whose bits compare as they do.
__device__ __forceinline__ float warp_max_magnitude(float x) {
  return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x)));
}

// 2^x, with an error of two last places or so; 0 where it is too small for a normal number.
__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// An address of shared memory as instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Programmatic dependent launch. Every kernel of a step calls both: a kernel may then be brought
// onto the card while the one before it still runs, and reads nothing of that one's before
// wait_for_previous returns. Weights may be read earlier, as no kernel of a step writes them.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// `cluster`: how many blocks along x stay together; more than one only where is_hopper().
template <class... P, class... A>
void launch_clusters(void (*kernel)(P...), dim3 grid, int cluster, int threads, size_t shared,
                     cudaStream_t stream, A... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : is_hopper() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "launching a kernel");
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
            A... arguments) {
  launch_clusters(kernel, grid, 1, threads, shared, stream, arguments...);
}

}  // namespace qinfer::cuda
