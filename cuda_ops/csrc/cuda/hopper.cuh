// Hopper's own instructions (sm_90a): tensor copies that complete on barriers in shared memory, and
// matrix products of a warpgroup (128 threads). PTX ISA, "cp.async.bulk.tensor" and
// "wgmma.mma_async".
#pragma once
#include <cuda.h>

#include "barriers.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define QINFER_HOPPER 1  // compiled for sm_90a
#endif

namespace qinfer::cuda {

// How a tensor lies in memory, for the copy engine. Sizes of a box and of the tensor, the
// innermost first; strides in bytes, from the second on. A box's rows are 128 or 64 bytes and are
// swizzled, so that eight rows' chunks of one column lie in different banks.
CUtensorMap tensor_map(CUtensorMapDataType type, const void* from, int rank, const uint64_t* sizes,
                       const uint64_t* strides, const uint32_t* box);

#ifdef QINFER_HOPPER

__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, uint64_t* bar, int c0,
                                         int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1)
      : "memory");
}
// To the same place of all blocks in `mask`, whose barriers count it as well.
__device__ __forceinline__ void copy_box_to_all(void* to, const CUtensorMap* map, uint64_t* bar,
                                                int c0, int c1, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1), "h"(mask)
      : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, uint64_t* bar, int c0,
                                         int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, uint64_t* bar, int c0,
                                         int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
__device__ __forceinline__ void store_box(const CUtensorMap* map, const void* from, int c0,
                                          int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(shared_address(from)), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
// What was written to shared memory by ordinary stores is to be read by copies or products.
__device__ __forceinline__ void fence_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A barrier of some threads of the block.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int N>
__device__ __forceinline__ void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// Where a product finds a matrix in shared memory, rows of 128 bytes swizzled as copies leave
// them. Eight rows are 1024 bytes, and groups of eight follow each other; `leading`: bytes from
// 64 numbers of a row to the next 64, where the product takes them across ("turned").
__device__ __forceinline__ uint64_t matrix(const void* at, int leading = 16) {
  const uint64_t address = shared_address(at);
  return ((address & 0x3ffff) >> 4) | (uint64_t(leading >> 4) << 16) | (uint64_t(1024 >> 4) << 32) |
         (uint64_t(1) << 62);
}

__device__ __forceinline__ void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Keeps the compiler from moving uses of sums across a wait.
template <int N>
__device__ __forceinline__ void hold(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#endif

}  // namespace qinfer::cuda
