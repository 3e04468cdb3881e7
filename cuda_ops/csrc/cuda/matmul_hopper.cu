// Products of many rows on Hopper, with what follows them: y = x W^T, scaled, biased, or gated by
// SiLU in the registers, so that the wide intermediate never reaches memory.
//
// Two blocks that work on neighbouring rows form a cluster: each fetches half of the weights' tile
// for both. One warp fetches ahead of two warpgroups that multiply 64 rows by 256 outputs each.
#include <cuda_fp8.h>

#include "hopper_products.h"
#include "wgmma.cuh"

namespace qinfer::cuda {
namespace {

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

__device__ __forceinline__ uint32_t block_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

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
  const int rank = block_in_cluster();
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
    const int rank = block_in_cluster();
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

template <class T, class Y, bool Gated>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_kernel(const __grid_constant__ Maps maps, const Sizes z, const Extras extras) {
#ifdef QINFER_HOPPER
  extern __shared__ unsigned char memory[];
  Shared& shared =
      *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(memory) + 1023) & ~uintptr_t(1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.here[i], 1);
      barrier_init(&shared.read[i], 4);  // two warpgroups of two blocks
    }
    barrier_fence();
  }
  cluster_sync();
  let_next_start();
  wait_for_previous();
  if (threadIdx.x < 128) {
    registers_down<24>();
    if (threadIdx.x == 0) fetch_all<T, Gated>(maps, z, shared);
  } else {
    registers_up<240>();
    Multiplier<T, Y, Gated>{shared, maps, z, extras}.run();
  }
  cluster_sync();  // a block's memory is written by the other one
#endif
}

template <class T>
constexpr CUtensorMapDataType kMapType = std::is_same_v<T, BF16>  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : std::is_same_v<T, F16> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                  : CU_TENSOR_MAP_DATA_TYPE_UINT8;

template <class T>
CUtensorMap map_of(const void* from, uint64_t rows, uint64_t width, uint32_t box_rows) {
  const uint64_t sizes[] = {width, rows}, strides[] = {width * sizeof(T)};
  const uint32_t box[] = {kBytes / sizeof(T), box_rows};
  return tensor_map(kMapType<T>, from, 2, sizes, strides, box);
}

template <class T, class Y, bool Gated>
void run(const Product& p, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(Shared) + 1024;
  static_assert(kShared <= 232448);
  auto* kernel = matmul_kernel<T, Y, Gated>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "raising a kernel's shared memory");
  const int64_t width = Gated ? p.out / 2 : p.out;
  const Maps maps{map_of<T>(p.x, p.rows, p.in, kRows),
                  map_of<T>(p.weight, p.out, p.in, kOutputs / 2),
                  map_of<Y>(p.y, p.rows, width, kBox)};
  Sizes z{};
  z.rows = p.rows, z.in = p.in, z.out = width;
  z.second = Gated ? width : kOutputs / 2;
  z.steps = (p.in * sizeof(T) + kBytes - 1) / kBytes;
  z.row_tiles = (p.rows + 2 * kRows - 1) / (2 * kRows);
  const int each = Gated ? kOutputs / 2 : kOutputs;
  z.tiles = z.row_tiles * ((width + each - 1) / each);
  const int blocks = std::min(z.tiles * 2, multiprocessors() / 2 * 2);
  launch_clusters(kernel, dim3(blocks), 2, kThreads, kShared, stream, maps, z,
                  Extras{p.scale, p.x_scale, p.bias});
}

}  // namespace

bool matmul_hopper_suits(int64_t rows, int64_t in, int64_t out, bool gated) {
  if (!is_sm90() || in % 16 || out % 16) return false;
  const int64_t width = gated ? kOutputs / 2 : kOutputs, outs = gated ? out / 2 : out;
  const int64_t row_tiles = (rows + 2 * kRows - 1) / (2 * kRows);
  const int64_t tiles = row_tiles * ((outs + width - 1) / width), pairs = multiprocessors() / 2;
  const int64_t waves = (tiles + pairs - 1) / pairs;
  const double whole = double(rows) * outs / (2.0 * kRows * width);  // tiles, counted exactly
  return whole / double(waves * pairs) > (gated ? 0.85 : 0.75);
}

void matmul_hopper(Type type, bool is_e4m3, bool gated, const Product& p, cudaStream_t stream) {
  using E4M3 = __nv_fp8_e4m3;
  if (type == Type::kBF16) {
    if (is_e4m3)
      gated ? run<E4M3, BF16, true>(p, stream) : run<E4M3, BF16, false>(p, stream);
    else
      gated ? run<BF16, BF16, true>(p, stream) : run<BF16, BF16, false>(p, stream);
  } else {
    if (is_e4m3)
      gated ? run<E4M3, F16, true>(p, stream) : run<E4M3, F16, false>(p, stream);
    else
      gated ? run<F16, F16, true>(p, stream) : run<F16, F16, false>(p, stream);
  }
}

}  // namespace qinfer::cuda
