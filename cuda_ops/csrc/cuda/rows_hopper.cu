// Products of 17 to 128 rows of e4m3 on Hopper: the matrix units take the weights as their rows,
// straight from where the copy engine puts them. The blocks of a cluster share out the inputs. (For
// bfloat16 this is as fast as cuBLASLt: benchmarks/gpu/NOTES.md.)
#include <cuda_fp8.h>

#include <algorithm>

#include "cluster_sums.cuh"
#include "hopper_products.h"
#include "wgmma.cuh"

namespace qinfer::cuda {
namespace {

// Two warpgroups multiply 64 channels each; one more warp fetches.
constexpr int kGroups = 2, kChannels = kGroups * 64, kThreads = kGroups * 128 + 32;
constexpr int kBytes = 128;                // of a channel, and of a row, in a stage
constexpr int kMostStages = 8, kHeld = 2;  // blocks that a multiprocessor holds

struct Maps {
  CUtensorMap x, weight;
};

template <int Rows>
constexpr int kStage = (kChannels + Rows) * kBytes;

template <class Y, int Rows>
__global__ void __launch_bounds__(kThreads, kHeld)
    rows_kernel(const __grid_constant__ Maps maps, const Outputs o, int steps, int stages) {
#ifdef QINFER_HOPPER
  extern __shared__ unsigned char raw[];
  __shared__ uint64_t here[kMostStages], read[kMostStages];
  unsigned char* memory = reinterpret_cast<unsigned char*>(
      (reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t(1023));
  const int blocks = gridDim.x, rank = blockIdx.x, first = int(blockIdx.y) * kChannels;
  const int begin = int(int64_t(steps) * rank / blocks);
  const int end = int(int64_t(steps) * (rank + 1) / blocks);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) barrier_init(&here[i], 1), barrier_init(&read[i], kGroups);
    barrier_fence();
  }
  __syncthreads();
  let_next_start();
  const int group = threadIdx.x / 128;
  float sums[Rows / 2] = {};
  if (group == kGroups) {
    if (threadIdx.x % 32 == 0) {
      const auto weights = [&](int step, int stage) {
        barrier_expect(&here[stage], kStage<Rows>);
        copy_box(memory + stage * kStage<Rows>, &maps.weight, &here[stage], step * kBytes, first);
      };
      const int ahead = min(begin + stages, end);
      for (int step = begin; step < ahead; ++step) weights(step, step - begin);
      wait_for_previous();  // weights do not depend on it
      for (int step = begin, stage = 0, parity = 1; step < end; ++step) {
        if (step >= ahead) barrier_wait(&read[stage], parity), weights(step, stage);
        copy_box(memory + stage * kStage<Rows> + kChannels * kBytes, &maps.x, &here[stage],
                 step * kBytes, 0);
        if (++stage == stages) stage = 0, parity ^= 1;
      }
    }
  } else {
    wait_for_previous();  // the scales of the rows come from there
    for (int step = begin, stage = 0, parity = 0; step < end; ++step) {
      barrier_wait(&here[stage], parity);
      const unsigned char* at = memory + stage * kStage<Rows>;
      products_begin();
#pragma unroll
      for (int k = 0; k < kBytes / 32; ++k)
        multiply_shared<__nv_fp8_e4m3, Rows>(sums, matrix(at + group * 64 * kBytes) + k * 2,
                                             matrix(at + kChannels * kBytes) + k * 2, true);
      products_commit();
      products_wait<1>();
      const int before = stage ? stage - 1 : stages - 1;
      if (step > begin && threadIdx.x % 128 == 0) barrier_arrive(&read[before]);
      if (++stage == stages) stage = 0, parity ^= 1;
    }
    products_wait<0>();
    hold(sums);
  }
  __syncthreads();  // nobody reads the stages any more
  const ClusterSums<Y, kChannels, kThreads> all{o, reinterpret_cast<float*>(memory), first};
  if (group < kGroups)
#pragma unroll
    for (int n = 0; n < Rows / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        all.keep(group * 64 + threadIdx.x % 128 / 32 * 16, n, i, sums[4 * n + i]);
  all.finish(rank, blocks);
#endif
}

CUtensorMap map_of(const void* from, uint64_t rows, uint64_t width, uint32_t box_rows) {
  const uint64_t sizes[] = {width, rows}, strides[] = {width};
  const uint32_t box[] = {kBytes, box_rows};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, from, 2, sizes, strides, box);
}

template <class Y, int Rows>
void run(const Product& p, cudaStream_t stream) {
  auto* kernel = rows_kernel<Y, Rows>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 220 << 10),
        "raising a kernel's shared memory");
  const Maps maps{map_of(p.x, p.rows, p.in, Rows), map_of(p.weight, p.out, p.in, kChannels)};
  const int64_t tiles = (p.out + kChannels - 1) / kChannels;
  const int64_t steps = (p.in + kBytes - 1) / kBytes;
  int blocks = 1;  // that share a tile: as many as the card holds at once
  while (blocks < 8 && tiles * blocks * 2 <= kHeld * multiprocessors() && steps >= blocks * 4)
    blocks *= 2;
  const int64_t held = std::min<int64_t>((tiles * blocks - 1) / multiprocessors() + 1, kHeld);
  const int64_t room = (220 / held - 3) * 1024;
  const int stages =
      static_cast<int>(std::min<int64_t>({room / kStage<Rows>, steps / blocks + 1, kMostStages}));
  const int shared = std::max(stages * kStage<Rows>, kChannels * Rows * 4) + 1024;
  const Outputs o{p.scale, p.x_scale, p.bias, p.y, int(p.rows), int(p.out)};
  launch_clusters(kernel, dim3(blocks, tiles), blocks, kThreads, shared, stream, maps, o,
                  int(steps), stages);
}

template <class Y>
void of_rows(const Product& p, cudaStream_t stream) {
  p.rows <= 64 ? run<Y, 64>(p, stream) : run<Y, 128>(p, stream);
}

}  // namespace

bool rows_hopper_suits(int64_t rows, int64_t in, int64_t out) {
  return is_sm90() && rows <= (in > out ? 128 : 64);
}

void rows_hopper(Type type, const Product& p, cudaStream_t stream) {
  type == Type::kBF16 ? of_rows<BF16>(p, stream) : of_rows<F16>(p, stream);
}

}  // namespace qinfer::cuda
