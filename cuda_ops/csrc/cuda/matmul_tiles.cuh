// Products of many rows on Hopper: which tiles a block has, the warp that fetches for them, and the
// warpgroups that multiply and store.
#pragma once
#include <cuda_fp8.h>

#include "cluster.cuh"
#include "wgmma.cuh"

namespace qinfer::cuda::tiles {

constexpr int kStages = 4, kRows = 128, kOutputs = 256, kBytes = 128;  // of a row in a stage
constexpr int kThreads = 3 * 128, kBox = 64;

struct Maps {
  CUtensorMap x, weight, y;
};

struct Sizes {
  int rows, in, out;  // out: of y
  int second;         // the weights' row that is added to the tile's first for its second half
  int steps, row_tiles, tiles;
};

struct Extras {
  const float *scale, *x_scale;
  const void* bias;
};

struct Shared {
  uint8_t x[kStages][kRows][kBytes];
  uint8_t weight[kStages][kOutputs][kBytes];
  uint8_t y[2][2][kBox][kBytes];  // of each warpgroup, two boxes of 64 by 64
  uint64_t here[kStages], read[kStages];
};

#ifdef QINFER_HOPPER

constexpr int kTogether = 8;  // pairs of row tiles that are computed before the next outputs

struct Tile {
  int row, out;
};

// Row tiles go in groups, so that what the blocks read at one time stays in the L2 cache.
template <bool Gated>
__device__ __forceinline__ Tile tile_at(const Sizes& z, int index, int rank) {
  const int outs = z.tiles / z.row_tiles, group = index / (kTogether * outs);
  const int here = min(kTogether, z.row_tiles - group * kTogether),
            in = index - group * kTogether * outs;
  return {((group * kTogether + in % here) * 2 + rank) * kRows,
          in / here * (Gated ? kOutputs / 2 : kOutputs)};
}

template <class T, bool Gated>
__device__ __forceinline__ void fetch_all(const Maps& maps, const Sizes& z, Shared& shared) {
  constexpr int kNumbers = kBytes / sizeof(T);
  const int rank = int(cluster_rank());
  int stage = 0, parity = 1;
  for (int index = blockIdx.x / 2; index < z.tiles; index += gridDim.x / 2) {
    const Tile tile = tile_at<Gated>(z, index, rank);
    for (int step = 0; step < z.steps; ++step) {
      barrier_wait(&shared.read[stage], parity);
      barrier_expect(&shared.here[stage], (kRows + kOutputs) * kBytes);
      copy_box(shared.x[stage], &maps.x, &shared.here[stage], step * kNumbers, tile.row);
      copy_box_to_all(shared.weight[stage][rank * kOutputs / 2], &maps.weight, &shared.here[stage],
                      step * kNumbers, tile.out + rank * z.second, 3);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  }
}

template <class T, class Y, bool Gated>
struct Multiplier {
  Shared& shared;
  const Maps& maps;
  const Sizes& z;
  const Extras& extras;
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;  // in the warpgroup's 64
  float sums[kOutputs / 2];
  int stage = 0, parity = 0;

  __device__ __forceinline__ void release(int of) {
    const int thread = threadIdx.x % 128;
    if (thread < 2) barrier_arrive_at(&shared.read[of], thread);
  }

  __device__ __forceinline__ void multiply_tile() {
    int before = -1;
    for (int step = 0; step < z.steps; ++step) {
      barrier_wait(&shared.here[stage], parity);
      products_begin();
#pragma unroll
      for (int k = 0; k < kBytes / 32; ++k)
        multiply_shared<T, kOutputs>(sums, matrix(shared.x[stage][group * 64]) + k * 2,
                                     matrix(shared.weight[stage]) + k * 2, step > 0 || k > 0);
      products_commit();
      products_wait<1>();
      if (before >= 0) release(before);
      before = stage;
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
    products_wait<0>();
    hold(sums);
    release(before);
  }

  __device__ __forceinline__ void scale_up(const Tile& tile) {
    float by_row[2] = {1, 1};
    if (extras.x_scale)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        by_row[half] = extras.x_scale[min(tile.row + group * 64 + row + 8 * half, z.rows - 1)];
    const Y* bias = static_cast<const Y*>(extras.bias);
#pragma unroll
    for (int n = 0; n < kOutputs / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int out = tile.out + n % (kOutputs / 16) * 8 + n / (kOutputs / 16) * z.second;
        out = min(out + lane % 4 * 2 + i, (Gated ? 2 * z.out : z.out) - 1);
        const float by = extras.scale ? extras.scale[out] : 1, more = bias ? number(bias[out]) : 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& x = sums[4 * n + 2 * half + i];
          x = x * (by * by_row[half]) + more;
        }
      }
  }

  __device__ __forceinline__ float gated(int at) const {
    // as if gate and up had been stored, as the operators' contract has it
    const float gate = number(Y(sums[at])), up = number(Y(sums[at + kOutputs / 4]));
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
  }

  // 128 outputs of 64 rows by way of shared memory.
  template <int First>
  __device__ __forceinline__ void store(const Tile& tile) {
    if (threadIdx.x % 128 == 0) store_wait_read<0>();
    named_sync(1 + group, 128);
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * (n + First / 8) + 2 * half, to = row + 8 * half;
        const uint32_t both =
            Gated ? pack<Y>(gated(at), gated(at + 1)) : pack<Y>(sums[at], sums[at + 1]);
        *reinterpret_cast<uint32_t*>(
            &shared.y[group][n / 8][to][((n % 8) ^ (to & 7)) * 16 + lane % 4 * 4]) = both;
      }
    fence_for_async();
    named_sync(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
#pragma unroll
      for (int box = 0; box < 2; ++box)
        store_box(&maps.y, shared.y[group][box], tile.out + First + box * kBox,
                  tile.row + group * 64);
      store_commit();
    }
  }

  __device__ __forceinline__ void run() {
    const int rank = int(cluster_rank());
    for (int index = blockIdx.x / 2; index < z.tiles; index += gridDim.x / 2) {
      const Tile tile = tile_at<Gated>(z, index, rank);
      multiply_tile();
      if (extras.scale || extras.x_scale || extras.bias) scale_up(tile);
      store<0>(tile);
      if constexpr (!Gated) store<128>(tile);
    }
    if (threadIdx.x % 128 == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
};

#endif

}  // namespace qinfer::cuda::tiles
