// Products of 17 to 256 rows on Hopper with weights of 8 or 4 bits: the matrix units take the
// channels as their rows, e4m3 straight from where the copy engine puts it, integers by way of
// registers, where they become numbers. The blocks of a cluster share out the inputs.
#include <cuda_fp8.h>

#include <algorithm>

#include "cluster_sums.cuh"
#include "hopper_products.h"
#include "unpacked.cuh"
#include "wgmma.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kBytes = 128;  // of a row of inputs in a box
constexpr int kMostStages = 8;

struct Maps {
  CUtensorMap x, weight;
};

struct Arguments {
  Outputs o;
  const float* scale;  // int4: of each channel's groups
  int in, steps, stages;
};

// G warpgroups multiply 64 channels each by up to R rows; one more warp fetches. A stage has
// kInputs inputs.
template <class N, Format F, int R, int G>
struct Shape {
  using T = N;
  static constexpr Format kFormat = F;
  static constexpr int kRows = R, kGroups = G, kChannels = G * 64, kThreads = G * 128 + 32;
  static constexpr int kPitch = F == Format::kInt4 ? 64 : 128;  // bytes of a channel in a stage
  static constexpr int kBoxes = F == Format::kE4M3 ? 1 : 2;     // of inputs
  static constexpr int kWeights = kChannels * kPitch;
  static constexpr int kStage = kWeights + kBoxes * R * kBytes;
};

#ifdef QINFER_HOPPER

// A block's memory and its share of the steps.
struct Block {
  unsigned char* memory;
  uint64_t *here, *read;
  int begin, end, stages;
};

template <class S>
__device__ __forceinline__ void fetch(const Maps& maps, const Block& b) {
  const auto weights = [&](int step, int stage) {
    barrier_expect(&b.here[stage], S::kStage);
    copy_box(b.memory + stage * S::kStage, &maps.weight, &b.here[stage], step * S::kPitch,
             int(blockIdx.y) * S::kChannels);
  };
  const int ahead = min(b.begin + b.stages, b.end);
  for (int step = b.begin; step < ahead; ++step) weights(step, step - b.begin);
  wait_for_previous();  // weights do not depend on it
  for (int step = b.begin, stage = 0, parity = 1; step < b.end; ++step) {
    if (step >= ahead) barrier_wait(&b.read[stage], parity), weights(step, stage);
    for (int box = 0; box < S::kBoxes; ++box)
      copy_box(b.memory + stage * S::kStage + S::kWeights + box * S::kRows * kBytes, &maps.x,
               &b.here[stage], (step * S::kBoxes + box) * kBytes, 0);
    if (++stage == b.stages) stage = 0, parity ^= 1;
  }
}

// Calls `multiply(stage's memory, step, release)` as stages come; `release` gives the one before
// free, once its products are over.
template <class S, class Multiply>
__device__ __forceinline__ void each_stage(const Block& b, Multiply multiply) {
  for (int step = b.begin, stage = 0, parity = 0; step < b.end; ++step) {
    barrier_wait(&b.here[stage], parity);
    multiply(b.memory + stage * S::kStage, step, [&] {
      if (step > b.begin && threadIdx.x % 128 == 0)
        barrier_arrive(&b.read[stage ? stage - 1 : b.stages - 1]);
    });
    if (++stage == b.stages) stage = 0, parity ^= 1;
  }
}

template <class S>
__device__ __forceinline__ void multiply_e4m3(float (&sums)[S::kRows / 2], const Block& b) {
  const int group = threadIdx.x / 128;
  each_stage<S>(b, [&](const unsigned char* at, int, auto release) {
    products_begin();
#pragma unroll
    for (int k = 0; k < kBytes / 32; ++k)
      multiply_shared<__nv_fp8_e4m3, S::kRows>(sums, matrix(at + group * 64 * kBytes) + k * 2,
                                               matrix(at + S::kWeights) + k * 2, true);
    products_commit();
    products_wait<1>();
    release();
  });
}

// Operands are made while those of the step before are multiplied.
template <class S>
__device__ __forceinline__ void multiply_integers(float (&sums)[S::kRows / 2], const Block& b,
                                                  const Arguments& p) {
  using T = typename S::T;
  const int warp = threadIdx.x / 32, channel = int(blockIdx.y) * S::kChannels + warp * 16;
  Unpacked<T, S::kFormat> unpacked(p.scale, channel, p.o.out, p.in);
  uint32_t a[2][4];
  unpacked.fetch(b.begin);
  each_stage<S>(b, [&](const unsigned char* at, int step, auto release) {
    unpacked.take(step);
#pragma unroll
    for (int i = 0; i < kInputs / 16; ++i) {
      unpacked.operands(at + warp * 16 * S::kPitch, i, a[i % 2]);
      const int sixteen = unpacked.sixteen(i);
      products_begin();
      multiply_registers<T, S::kRows>(
          sums, a[i % 2],
          matrix(at + S::kWeights + sixteen / 4 * S::kRows * kBytes) + sixteen % 4 * 2);
      products_commit();
      products_wait<1>();
      keep_until_here(a[1 - i % 2]);
      if (i == 0) release();
    }
  });
}

#endif

template <class S, int Held>
__global__ void __launch_bounds__(S::kThreads, Held)
    rows_kernel(const __grid_constant__ Maps maps, const Arguments p) {
#ifdef QINFER_HOPPER
  extern __shared__ unsigned char raw[];
  __shared__ uint64_t here[kMostStages], read[kMostStages];
  const int64_t blocks = gridDim.x, rank = blockIdx.x;
  const Block b{reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(raw) + 1023) &
                                                 ~uintptr_t(1023)),
                here,
                read,
                int(p.steps * rank / blocks),
                int(p.steps * (rank + 1) / blocks),
                p.stages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i)
      barrier_init(&here[i], 1), barrier_init(&read[i], S::kGroups);
    barrier_fence();
  }
  __syncthreads();
  let_next_start();
  const bool multiplies = threadIdx.x / 128 < S::kGroups;
  float sums[S::kRows / 2] = {};
  if (multiplies) {
    wait_for_previous();  // the scales of the rows come from there
    if constexpr (S::kFormat == Format::kE4M3)
      multiply_e4m3<S>(sums, b);
    else
      multiply_integers<S>(sums, b, p);
    products_wait<0>();
    hold(sums);
  } else if (threadIdx.x % 32 == 0) {
    fetch<S>(maps, b);
  }
  __syncthreads();  // nobody reads the stages any more
  const ClusterSums<typename S::T, S::kChannels, S::kThreads> all{
      p.o, reinterpret_cast<float*>(b.memory), int(blockIdx.y) * S::kChannels};
  if (multiplies)
#pragma unroll
    for (int n = 0; n < S::kRows / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) all.keep(threadIdx.x / 32 * 16, n, i, sums[4 * n + i]);
  all.finish(int(rank), int(blocks));
#endif
}

// Boxes of `wide` bytes from `rows` rows of `bytes` bytes that lie one after the other.
CUtensorMap map_of(const void* from, uint64_t rows, uint64_t bytes, uint32_t wide,
                   uint32_t box_rows) {
  const uint64_t sizes[] = {bytes, rows}, strides[] = {bytes};
  const uint32_t box[] = {wide, box_rows};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, from, 2, sizes, strides, box);
}

// `blocks` share a tile's inputs.
template <class S, int Held>
void run(const Product& p, int blocks, cudaStream_t stream) {
  constexpr int64_t kRoom = 224 << 10;  // bytes of shared memory for the blocks
  auto* kernel = rows_kernel<S, Held>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRoom),
        "raising a kernel's shared memory");
  constexpr bool kByGroup = S::kFormat == Format::kInt4;
  const int64_t row_bytes = kByGroup ? int4_bytes(1, p.in) : p.in;
  const int64_t x_bytes = p.in * (S::kFormat == Format::kE4M3 ? 1 : 2);
  const Maps maps{map_of(p.x, p.rows, x_bytes, kBytes, S::kRows),
                  map_of(p.weight, p.out, row_bytes, S::kPitch, S::kChannels)};
  const int64_t tiles = (p.out + S::kChannels - 1) / S::kChannels;
  const int64_t steps = (p.in + kInputs - 1) / kInputs;
  // the fewer blocks there are, the more each has to have on its way
  const int64_t held = std::min<int64_t>((tiles * blocks - 1) / multiprocessors() + 1, Held);
  const int64_t stages =
      std::min<int64_t>({(kRoom / held - 3072) / S::kStage, steps / blocks + 1, kMostStages});
  const int64_t shared = std::max<int64_t>(stages * S::kStage, S::kChannels * S::kRows * 4) + 1024;
  const Outputs o{kByGroup ? nullptr : p.scale, p.x_scale, p.bias, p.y, int(p.rows), int(p.out)};
  const Arguments a{o, p.scale, int(p.in), int(steps), int(stages)};
  launch_clusters(kernel, dim3(blocks, tiles), blocks, S::kThreads, shared, stream, maps, a);
}

// As many blocks as the card holds at once.
int split_of(const Product& p, int channels, int held) {
  const int64_t tiles = (p.out + channels - 1) / channels, steps = (p.in + kInputs - 1) / kInputs;
  int blocks = 1;
  while (blocks < 8 && tiles * blocks * 2 <= held * multiprocessors() && steps >= blocks * 4)
    blocks *= 2;
  return blocks;
}

template <class T, Format F, int R, int G, int H>
void run_split(const Product& p, cudaStream_t stream) {
  using S = Shape<T, F, R, G>;
  run<S, H>(p, split_of(p, S::kChannels, H), stream);
}

template <class T, Format F>
void of_rows(const Product& p, cudaStream_t stream) {
  if (p.rows <= 64)
    run_split<T, F, 64, 2, 2>(p, stream);
  else if (p.rows <= 128)
    run_split<T, F, 128, 2, F == Format::kE4M3 ? 2 : 1>(p, stream);
  else
    run_split<T, F, 256, 2, 1>(p, stream);
}

template <class T>
void of_format(Format format, const Product& p, cudaStream_t stream) {
  switch (format) {
    case Format::kInt8:
      return of_rows<T, Format::kInt8>(p, stream);
    case Format::kInt4:
      return of_rows<T, Format::kInt4>(p, stream);
    default:
      return of_rows<T, Format::kE4M3>(p, stream);
  }
}

}  // namespace

bool rows_hopper_suits(int64_t rows, int64_t in, int64_t out) {
  return is_sm90() && rows <= (in > out ? 128 : 64);
}

void rows_hopper(Type type, Format format, const Product& p, cudaStream_t stream) {
  type == Type::kBF16 ? of_format<BF16>(format, p, stream) : of_format<F16>(format, p, stream);
}

}  // namespace qinfer::cuda
