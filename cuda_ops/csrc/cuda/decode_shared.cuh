// What the blocks of attention in decoding have in shared memory, and how their parts become one.
#pragma once
#include "async.cuh"
#include "head.cuh"

namespace qinfer::cuda::decoding {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kKeys = 16;        // of a turn of a warp
constexpr int kStages = 3;       // turns on their way
constexpr int kHeads = 16;       // rows of a matrix instruction
constexpr int kAlone = 4;        // turns of a warp, before other clusters help
constexpr int kTurns = 2;        // then, as putting their parts together costs more than two turns
constexpr int kMostCluster = 8;  // what every card can place
constexpr int kMostChunks = 8;   // clusters for a sequence

struct Arguments {
  Decode d;
  int heads, kv_heads, width, block_size, groups, chunks;
};

// Sixteen keys or values as they come: chunks of sixteen bytes, swapped about within a row so that
// neither the copies nor the reads meet in a bank.
template <int Bytes>
struct Rows {
  static constexpr int kChunks = Bytes / 16;
  static constexpr int kMask = kChunks >= 8 ? 7 : kChunks - 1;
  static constexpr int kPerLine = kChunks >= 8 ? 1 : 8 / kChunks;  // rows in 128 bytes
  static __device__ __forceinline__ int keys(int row, int chunk) {
    return row * kChunks + (kChunks >= 8 ? chunk ^ (row & 1) << 2 : chunk);
  }
  static __device__ __forceinline__ int values(int row, int chunk) {
    return row * kChunks + (chunk ^ (row / kPerLine & kMask));
  }
};

// A warp's part of the answer: of each head the weighted sum of values, the largest score and the
// sum of weights.
template <int D>
struct Part {
  float sums[kHeads][D + 8];  // so many that a warp's stores meet in no bank
  float most[kHeads], total[kHeads];
};

template <class T, Format F, int D>
struct Shared {
  using Raw = Rows<D * Stored<T, F>::kBytes>;
  union {
    struct {
      uint4 keys[kWarps][kStages][kKeys * Raw::kChunks];
      uint4 values[kWarps][kStages][kKeys * Raw::kChunks];
    };
    Part<D> parts[kWarps];  // afterwards
  };
  alignas(16)
      T wide[F == Format::kPlain ? 1 : kWarps][F == Format::kPlain ? 8 : kKeys * D];  // values as T
  float scales[kWarps][kStages][2][kKeys];
  alignas(16) T queries[kHeads][D];
  float4
      sums[kHeads * D / 4 + kMostCluster];  // what the cluster's blocks put here: this one's share
  float2 most_total[kMostCluster][kHeads];  // of all heads
};

}  // namespace qinfer::cuda::decoding
