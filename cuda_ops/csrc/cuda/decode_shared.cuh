// What the blocks of attention in decoding have in shared memory.
#pragma once
#include "async.cuh"
#include "cache.cuh"

namespace qinfer::cuda::decoding {

constexpr int kKeys = 16;        // of a turn of a warp: rows of a matrix instruction
constexpr int kHeads = 8;        // its columns
constexpr int kStages = 2;       // turns of a warp whose keys are on their way
constexpr int kTurnBits = 1;     // a warp has two turns, as putting clusters together costs so many
constexpr int kMostCluster = 8;  // blocks; what every card can place
constexpr int kMostChunks = 8;   // clusters for a sequence

// A block of 2^B warps.
template <int B>
struct Shape {
  static constexpr int kBits = B, kWarps = 1 << B, kThreads = kWarps * 32;
  static constexpr int kAlone = 16 / kWarps;  // turns of a warp, before other clusters help
};

// Whole numbers below 2^32 / value are divided by it in one multiplication.
struct Divisor {
  uint32_t value, inverse;
  explicit Divisor(int64_t by)
      : value(static_cast<uint32_t>(by)),
        inverse(static_cast<uint32_t>(((uint64_t(1) << 32) + value - 1) / value)) {}
  __device__ __forceinline__ int operator()(int x) const {
    return value == 1 ? x : static_cast<int>(__umulhi(uint32_t(x), inverse));
  }
};

struct Arguments {
  Decode d;
  int heads, kv_heads, width, chunks;
  int each;  // heads that share a KV head
  Divisor block_size, groups;
};

// By value: a choice between places in a kernel's arguments would copy all of them.
template <class V>
__device__ __forceinline__ V either(bool is_second, V first, V second) {
  return is_second ? second : first;
}

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
  float sums[kHeads][D + 4];  // so many that a warp's stores meet in no bank
  float2 rest[kHeads];
};

template <class T, Format F, int D, class P>
struct Shared {
  using Raw = Rows<D * Stored<T, F>::kBytes>;
  using Item = typename Stored<T, F>::Item;
  static constexpr bool kIsWidened = F != Format::kPlain;
  static constexpr int kWidened = kIsWidened ? P::kWarps : 1;
  static constexpr int kItems = kHeads * D / 4 + kMostCluster;
  // Of a warp: first its keys and values, then its part.
  union Held {
    struct {
      uint4 keys[kStages][kKeys * Raw::kChunks];
      uint4 values[kStages][kKeys * Raw::kChunks];
    };
    Part<D> part;
  };
  Held held[P::kWarps];
  alignas(16) T wide[kWidened][kIsWidened ? kKeys * D : 8];  // values as T
  float scales[kWidened][kStages][2][kKeys];
  alignas(16) T queries[kHeads][D + 8];
  alignas(16) Item newest[2][D];  // key and value
  float newest_scales[2];
  // What the cluster's blocks send: this one's share of the sums, each with the rest of its head.
  float4 sums[kItems];
  float2 rest[kItems];
  uint64_t arrived;  // counts those
};

}  // namespace qinfer::cuda::decoding
