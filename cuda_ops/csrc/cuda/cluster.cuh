// Clusters: blocks that run at the same time and read each other's shared memory. Before compute
// capability 9.0 there are none, and a block is alone.
#pragma once
#include "barriers.cuh"

namespace qinfer::cuda {

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// For sizes that are a power of two.
__device__ __forceinline__ int cluster_bits() { return __ffs(cluster_size()) - 1; }
// All threads of all blocks, by turns: what is written before arriving is seen after waiting, but
// for the early arrival, which waits for no write: only barriers that `expect` made are seen.
__device__ __forceinline__ void cluster_arrive_early() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
// Both, for threads of a warp that have come different ways.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}
// Where block `rank` has what is at `at` here, once it has started.
__device__ __forceinline__ uint32_t place_at(const void* at, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(at)), "r"(rank));
  return there;
}
// A barrier that other blocks' numbers arrive at: it opens when `bytes` have come. By one thread,
// before cluster_arrive_early.
__device__ __forceinline__ void expect(uint64_t* bar, uint32_t bytes) {
  barrier_init(bar, 1);
  barrier_fence();
  barrier_expect(bar, bytes);
}
// To the same place of another block, whose barrier counts it. After cluster_wait.
__device__ __forceinline__ void send(float4* at, uint64_t* bar, uint32_t rank, float4 v) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(place_at(at, rank)),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(place_at(bar, rank))
      : "memory");
}
__device__ __forceinline__ void send(float2* at, uint64_t* bar, uint32_t rank, float2 v) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          place_at(at, rank)),
      "f"(v.x), "f"(v.y), "r"(place_at(bar, rank))
      : "memory");
}
// Returns when everything has come.
__device__ __forceinline__ void receive(uint64_t* bar) { barrier_wait(bar, 0); }
#else
__device__ __forceinline__ uint32_t cluster_rank() { return 0; }
__device__ __forceinline__ uint32_t cluster_size() { return 1; }
__device__ __forceinline__ int cluster_bits() { return 0; }
__device__ __forceinline__ void cluster_arrive_early() {}
__device__ __forceinline__ void cluster_wait() { __syncthreads(); }
__device__ __forceinline__ void expect(uint64_t*, uint32_t) {}
template <class V>
__device__ __forceinline__ void send(V* at, uint64_t*, uint32_t, V v) {
  *at = v;
}
__device__ __forceinline__ void receive(uint64_t*) { __syncthreads(); }
#endif

}  // namespace qinfer::cuda
