// Products whose inputs are shared out among the blocks of a cluster: each keeps its sums in shared
// memory, as [row][channel], and then puts those of all together for some of them.
#pragma once
#include "cluster.cuh"
#include "hopper.cuh"

namespace qinfer::cuda {

struct Outputs {
  const float *scale, *x_scale;  // of channels and rows, or null
  const void* bias;              // or null
  void* y;
  int rows, out;
};

#ifdef QINFER_HOPPER

// Four numbers at the same place of another block of the cluster.
__device__ __forceinline__ float4 read_from(const float* at, int block) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(place_at(at, block)));
  return v;
}

template <class T, int Channels, int Threads>
struct ClusterSums {
  const Outputs& o;
  float* sums;
  int first;  // channel

  // Channels lie shifted about, so that the threads of a warp write to different banks.
  __device__ __forceinline__ static int place(int row, int channel) {
    return row * Channels + (channel ^ (row / 2 % 4 * 8));
  }

  // Number i of the four that a product leaves in a thread: of channel at + lane / 4 (+ 8).
  __device__ __forceinline__ void keep(int at, int n, int i, float sum) const {
    const int lane = threadIdx.x % 32;
    sums[place(n * 8 + lane % 4 * 2 + i % 2, at + i / 2 * 8 + lane / 4)] = sum;
  }

  // All threads of all blocks, once the sums are kept.
  __device__ __forceinline__ void finish(int rank, int blocks) const {
    if (blocks == 1) {
      __syncthreads();
      return add_up<1>(rank);
    }
    cluster_sync();
    if (blocks == 2) add_up<2>(rank);
    if (blocks == 4) add_up<4>(rank);
    if (blocks == 8) add_up<8>(rank);
    cluster_sync();  // the others may still read this block's sums
  }

  // This block's share of the numbers, four channels at a time.
  template <int Blocks>
  __device__ __forceinline__ void add_up(int rank) const {
    constexpr int kFours = Channels / 4;
    for (int i = threadIdx.x + rank * Threads; i < kFours * o.rows; i += Blocks * Threads) {
      const int row = i / kFours, at = i % kFours * 4;
      const float* mine = sums + place(row, at);
      float4 parts[Blocks];
#pragma unroll
      for (int b = 0; b < Blocks; ++b)
        parts[b] = Blocks == 1 ? *reinterpret_cast<const float4*>(mine) : read_from(mine, b);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float sum = 0;
#pragma unroll
        for (int b = 0; b < Blocks; ++b) sum += (&parts[b].x)[c];
        put(sum, row, first + at + c);
      }
    }
  }

  __device__ __forceinline__ void put(float sum, int row, int to) const {
    if (to >= o.out) return;
    if (o.x_scale) sum *= o.x_scale[row];
    if (o.scale) sum *= o.scale[to];
    if (o.bias) sum += number(static_cast<const T*>(o.bias)[to]);
    static_cast<T*>(o.y)[int64_t(row) * o.out + to] = T(sum);
  }
};

#endif

}  // namespace qinfer::cuda
