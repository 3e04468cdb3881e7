// The kernel of products of some rows on Hopper: the matrix units take the channels as their rows,
// 16-bit numbers and e4m3 straight from where the copy engine puts them, integers by way of
// registers, where they become numbers. The blocks of a cluster share out the inputs.
#pragma once
#include <cuda_fp8.h>

#include "cluster_sums.cuh"
#include "unpacked.cuh"
#include "wgmma.cuh"

namespace qinfer::cuda {

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

// G warpgroups multiply 64 channels each by up to R rows; one more warp fetches. What the copy
// engine brings of a stage at a time has at most 256 channels.
template <class N, Format F, int R, int G>
struct Shape {
  using T = N;
  static constexpr Format kFormat = F;
  static constexpr bool kAsHeld = F == Format::kPlain || F == Format::kE4M3;
  static constexpr int kRows = R, kGroups = G, kChannels = G * 64, kThreads = G * 128 + 32;
  static constexpr int kStep = F == Format::kPlain ? kInputs / 2 : kInputs;  // inputs of a stage
  static constexpr int kPitch = F == Format::kInt4 ? 64 : 128;  // bytes of a channel in a stage
  static constexpr int kBoxes = kAsHeld ? 1 : 2;                // of inputs
  static constexpr int kBox = kChannels > 256 ? kChannels / 2 : kChannels;
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
    for (int i = 0; i < S::kChannels; i += S::kBox)
      copy_box(b.memory + stage * S::kStage + i * S::kPitch, &maps.weight, &b.here[stage],
               step * S::kPitch, int(blockIdx.y) * S::kChannels + i);
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
__device__ __forceinline__ void multiply_as_held(float (&sums)[S::kRows / 2], const Block& b) {
  using Number = std::conditional_t<S::kFormat == Format::kE4M3, __nv_fp8_e4m3, typename S::T>;
  const int group = threadIdx.x / 128;
  each_stage<S>(b, [&](const unsigned char* at, int, auto release) {
    products_begin();
#pragma unroll
    for (int k = 0; k < kBytes / 32; ++k)
      multiply_shared<Number, S::kRows>(sums, matrix(at + group * 64 * kBytes) + k * 2,
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
    if constexpr (S::kAsHeld)
      multiply_as_held<S>(sums, b);
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

}  // namespace qinfer::cuda
