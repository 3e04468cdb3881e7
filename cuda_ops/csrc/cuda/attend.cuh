// Attention of a block's threads to some of a sequence's keys, and how what they have seen becomes
// one.
#pragma once
#include "attention.cuh"

namespace qinfer::cuda::attending {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kUnroll = 4;
constexpr int kMostParts = 64, kMostStates = 64;
constexpr int kLeast = 64;  // keys that are worth a block of their own

// One group of threads, that holds a row of D numbers eight to a thread, and what it has seen.
template <int G>
struct Seen {
  float most[G], total[G], sum[G][8];
};

template <class T, int D, int G>
struct Attend {
  static constexpr int kLanes = D / 8;       // that share a row
  static constexpr int kRows = 32 / kLanes;  // of a warp
  static constexpr int kStates = kRows * kWarps;

  const Heads& p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int column = lane % kLanes, own = lane / kLanes;
  int kv, group, first_head;
  float query[G][8];
  Seen<G> seen;

  __device__ explicit Attend(const Heads& heads) : p(heads) {
    group = p.heads / p.kv_heads;
    // a head group larger than G takes several blocks
    const int chunks = (group + G - 1) / G;
    kv = blockIdx.y / chunks;
    const int chunk = blockIdx.y % chunks;
    first_head = kv * group + chunk * G;
    group = min(G, group - chunk * G);
  }

  __device__ __forceinline__ void start(int token) {
    const T* from = static_cast<const T*>(p.queries) + (int64_t(token) * p.heads + first_head) * D;
#pragma unroll
    for (int h = 0; h < G; ++h) {
      uint4 v = {};
      if (h < group) v = *reinterpret_cast<const uint4*>(from + h * D + column * 8);
      unpack8<T>(v, query[h]);
      seen.most[h] = -1e30f, seen.total[h] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) query[h][i] *= p.scale, seen.sum[h][i] = 0;
    }
  }

  __device__ __forceinline__ void look(const int32_t* table, int begin, int end) {
    const auto* keys = static_cast<const T*>(p.keys);
    const auto* values = static_cast<const T*>(p.values);
    for (int j = begin + warp * kRows * kUnroll; j < end; j += kWarps * kRows * kUnroll) {
      uint4 k[kUnroll], v[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int at = min(j + u * kRows + own, end - 1);
        const int64_t slot = int64_t(table[at / p.block_size]) * p.block_size + at % p.block_size;
        const int64_t from = (slot * p.kv_heads + kv) * D + column * 8;
        k[u] = *reinterpret_cast<const uint4*>(keys + from);
        v[u] = *reinterpret_cast<const uint4*>(values + from);
      }
      float weight[kUnroll][G];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float key[8];
        unpack8<T>(k[u], key);
        const bool inside = j + u * kRows + own < end;
#pragma unroll
        for (int h = 0; h < G; ++h) {
          float score = 0;
#pragma unroll
          for (int i = 0; i < 8; ++i) score += query[h][i] * key[i];
#pragma unroll
          for (int d = kLanes / 2; d; d /= 2) score += __shfl_xor_sync(0xffffffffu, score, d);
          weight[u][h] = inside ? score : -1e30f;
        }
      }
#pragma unroll
      for (int h = 0; h < G; ++h) {
        float most = seen.most[h];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) most = fmaxf(most, weight[u][h]);
        const float old = power2(seen.most[h] - most);
        seen.most[h] = most;
        seen.total[h] *= old;
#pragma unroll
        for (int i = 0; i < 8; ++i) seen.sum[h][i] *= old;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const bool inside = j + u * kRows + own < end;
          weight[u][h] = inside ? power2(weight[u][h] - most) : 0.0f;
          seen.total[h] += weight[u][h];
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float value[8];
        unpack8<T>(v[u], value);
#pragma unroll
        for (int h = 0; h < G; ++h)
#pragma unroll
          for (int i = 0; i < 8; ++i) seen.sum[h][i] += weight[u][h] * value[i];
      }
    }
  }
};

// Several states of each of G heads, (D numbers, largest score, total), to be made one: a factor
// for each state, and each head's largest score and total. `state(h, n)` points at a state.
template <int D, int G, int Most>
struct Factors {
  float of[G][Most], most[G], total[G];

  template <class State>
  __device__ __forceinline__ void find(int heads, int count, State state) {
    for (int i = threadIdx.x; i < heads * count; i += kThreads)
      of[i / count][i % count] = *(state(i / count, i % count) + D);
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int h = warp; h < heads; h += kWarps) {
      float top = -1e30f, sum = 0;
      for (int n = lane; n < count; n += 32) top = fmaxf(top, of[h][n]);
      top = warp_max(top);
      for (int n = lane; n < count; n += 32) {
        const float factor = power2(of[h][n] - top);
        of[h][n] = factor;
        sum += factor * *(state(h, n) + D + 1);
      }
      sum = warp_sum(sum);
      if (lane == 0) most[h] = top, total[h] = sum;
    }
    __syncthreads();
  }

  template <class State>
  __device__ __forceinline__ float sum(int h, int d, int count, State state) const {
    float all = 0;
#pragma unroll 8
    for (int n = 0; n < count; ++n) all += of[h][n] * *(state(h, n) + d);
    return all;
  }
};

}  // namespace qinfer::cuda::attending
