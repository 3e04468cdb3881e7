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

__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

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

template <class T, Format F, int D>
struct Shared {
  using Raw = Rows<D * Stored<T, F>::kBytes>;
  static constexpr int kWhole = kHeads * (D + 2);  // numbers of a warp's part
  union {
    struct {
      uint4 keys[kWarps][kStages][kKeys * Raw::kChunks];
      uint4 values[kWarps][kStages][kKeys * Raw::kChunks];
    };
    float parts[kWarps][kWhole];  // afterwards
  };
  alignas(16)
      T wide[F == Format::kPlain ? 1 : kWarps][F == Format::kPlain ? 8 : kKeys * D];  // values as T
  float scales[kWarps][kStages][2][kKeys];
  alignas(16) T queries[kHeads][D];
  float sums[kHeads][D], most[kHeads], total[kHeads];  // of this block
};

// The sum of up to Most parts' numbers: read(part, d) is number d of a part, its largest score if d
// is D, its total if D + 1. Gives sum, largest score and total.
template <int D, int Most, class Read>
__device__ __forceinline__ float3 merged(int d, int count, Read read) {
  float most[Most], numbers[Most], totals[Most];
#pragma unroll
  for (int n = 0; n < Most; ++n) {
    const bool is_there = n < count;
    most[n] = is_there ? read(n, D) : -1e30f;
    numbers[n] = is_there ? read(n, d) : 0.0f;
    totals[n] = is_there ? read(n, D + 1) : 0.0f;
  }
  float top = most[0], sum = 0, total = 0;
#pragma unroll
  for (int n = 1; n < Most; ++n) top = fmaxf(top, most[n]);
#pragma unroll
  for (int n = 0; n < Most; ++n) {
    const float factor = power2(most[n] - top);
    sum += factor * numbers[n], total += factor * totals[n];
  }
  return {sum, top, total};
}

}  // namespace qinfer::cuda::decoding
