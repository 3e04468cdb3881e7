// Asynchronous copies from memory into shared memory (cp.async), which use no registers.
#pragma once
#include <cuda_fp8.h>

#include "common.cuh"

namespace qinfer::cuda {

// Sixteen bytes past the first-level cache, or zeros.
__device__ __forceinline__ void copy16(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
// The same of what a step reads once: it is the first to leave the second-level cache, where
// inputs, keys and instructions then stay. That fetches whole lines of 128 bytes, as the memory
// reads more slowly by the 64 that four threads ask for together.
__device__ __forceinline__ void copy16_once(void* to, const void* from, bool inside) {
  asm volatile(
      "{.reg .b64 once; createpolicy.fractional.L2::evict_first.b64 once, 1.0; "
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, once;}" ::"r"(
          shared_address(to)),
      "l"(from), "r"(inside ? 16 : 0)
      : "memory");
}
__device__ __forceinline__ void copy4(void* to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when all but the last `Left` groups of this thread's have come.
template <int Left>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

__device__ __forceinline__ uint4 load16(const void* at) { return *static_cast<const uint4*>(at); }

}  // namespace qinfer::cuda
