// How the parts of an answer become one: those of a block's warps, of a cluster's blocks, of the
// clusters that work on one sequence.
#pragma once
#include "cluster.cuh"
#include "decode_shared.cuh"

namespace qinfer::cuda::decoding {

// What parts have to be multiplied with before they are added up, brought to the largest score.
template <int Most>
struct Factors {
  float by[Most], top = -1e30f, total = 0;

  // read(part) gives its largest score and its total.
  template <class Read>
  __device__ __forceinline__ Factors(int count, Read read) {
    float2 found[Most];
#pragma unroll
    for (int n = 0; n < Most; ++n) {
      found[n] = n < count ? read(n) : make_float2(-1e30f, 0.0f);
      top = fmaxf(top, found[n].x);
    }
#pragma unroll
    for (int n = 0; n < Most; ++n) {
      by[n] = power2(found[n].x - top);
      total += by[n] * found[n].y;
    }
  }

  template <class Read>
  __device__ __forceinline__ float4 sum(int count, Read read) const {
    float4 all = {};
#pragma unroll
    for (int n = 0; n < Most; ++n) {
      if (n >= count) break;
      const float4 v = read(n);
      all.x += by[n] * v.x, all.y += by[n] * v.y, all.z += by[n] * v.z, all.w += by[n] * v.w;
    }
    return all;
  }
};

// Four numbers of a head are an item. Item i belongs to block i % size of the cluster, as its
// number i / size.
template <class T, Format F, int D>
struct Merge {
  static constexpr int kFours = D / 4, kScratch = kHeads * (D + 2);

  Shared<T, F, D>& s;
  const int group, size, rank;  // heads, blocks, this block
  const int items = group * kFours, each = (items + size - 1) / size;

  // This block's warps' parts, put where they belong.
  __device__ __forceinline__ void spread() const {
    const auto factors = [&](int h) {
      return Factors<kWarps>(
          kWarps, [&](int n) { return make_float2(s.parts[n].most[h], s.parts[n].total[h]); });
    };
    for (int i = threadIdx.x; i < items; i += kThreads) {
      const int h = i / kFours, at = i % kFours * 4;
      const float4 sum = factors(h).sum(
          kWarps, [&](int n) { return *reinterpret_cast<const float4*>(&s.parts[n].sums[h][at]); });
      put_at(&s.sums[rank * each + i / size], i % size, sum);
    }
    for (int i = threadIdx.x; i < group * size; i += kThreads) {
      const Factors<kWarps> of = factors(i / size);
      put_at(&s.most_total[rank][i / size], i % size, {of.top, of.total});
    }
  }

  // put(head, first of four numbers, sums, largest score, total) for this block's items.
  template <class Put>
  __device__ __forceinline__ void gather(Put put) const {
    for (int k = threadIdx.x; k * size + rank < items; k += kThreads) {
      const int i = k * size + rank, h = i / kFours;
      const Factors<kMostCluster> of(size, [&](int n) { return s.most_total[n][h]; });
      put(h, i % kFours * 4, of.sum(size, [&](int n) { return s.sums[n * each + k]; }), of.top,
          of.total);
    }
  }

  static __device__ __forceinline__ void write(T* to, float4 v, float total) {
    const float by = total > 0 ? 1.0f / total : 0.0f;
    *reinterpret_cast<uint2*>(to) = {pack<T>(v.x * by, v.y * by), pack<T>(v.z * by, v.w * by)};
  }

  // What other blocks left in memory, as [cluster][head][D sums, largest score, total].
  __device__ __forceinline__ void gather_clusters(const volatile float* scratch, int used,
                                                  T* out) const {
    for (int i = threadIdx.x; i < items; i += kThreads) {
      const volatile float* from = scratch + i / kFours * (D + 2);
      const Factors<kMostChunks> of(used, [&](int n) {
        return make_float2(from[n * kScratch + D], from[n * kScratch + D + 1]);
      });
      const float4 sum = of.sum(used, [&](int n) {
        const volatile float* at = from + n * kScratch + i % kFours * 4;
        return make_float4(at[0], at[1], at[2], at[3]);
      });
      write(out + i * 4, sum, of.total);
    }
  }
};

}  // namespace qinfer::cuda::decoding
