// How the parts of an answer become one: those of a block's warps, of a cluster's blocks, of the
// clusters that work on one sequence.
#pragma once
#include "cluster.cuh"
#include "decode_shared.cuh"

namespace qinfer::cuda::decoding {

struct Joined {
  float4 sum;   // of four numbers of a head
  float2 rest;  // its largest score and its total

  __device__ __forceinline__ void scale(float by) {
    sum.x *= by, sum.y *= by, sum.z *= by, sum.w *= by, rest.y *= by;
  }
  __device__ __forceinline__ void add(float by, float total, const float4& v) {
    sum.x += by * v.x, sum.y += by * v.y, sum.z += by * v.z, sum.w += by * v.w;
    rest.y += by * total;
  }
};

// rest(part) and sums(part) give a part's, which are brought to the largest score of all.
// Four at a time, so that their loads are on their way together.
template <class Rest, class Sums>
__device__ __forceinline__ Joined join(int count, Rest rest, Sums sums) {
  Joined all = {{}, {-1e30f, 0}};
#pragma unroll 1
  for (int first = 0; first < count; first += 4) {
    float2 one[4];
    float4 v[4];
    float top = all.rest.x;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = min(first + i, count - 1);
      one[i] = rest(n), v[i] = sums(n);
      top = fmaxf(top, one[i].x);
    }
    all.scale(power2(all.rest.x - top));
    all.rest.x = top;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      all.add(first + i < count ? power2(one[i].x - top) : 0.0f, one[i].y, v[i]);
  }
  return all;
}

// Four numbers of a head are an item. Item i belongs to block i % size of the cluster, as its
// number i / size.
template <class T, Format F, int D, class P>
struct Merge {
  static constexpr int kFours = D / 4, kEach = D + 4, kScratch = kHeads * kEach;
  static constexpr int kWarps = P::kWarps, kThreads = P::kThreads;

  Shared<T, F, D, P>& s;
  const int group, bits, rank;  // heads; 2^bits blocks; this one
  const int size = 1 << bits, items = group * kFours, each = (items + size - 1) >> bits;

  // Makes this block's barrier, before other blocks may send to it.
  __device__ __forceinline__ void prepare() const {
    const int mine = (items - rank + size - 1) >> bits;
    if (threadIdx.x == 0) expect(&s.arrived, size * mine * (sizeof(float4) + sizeof(float2)));
  }

  // put(head, first of four numbers, those of the cluster) for this block's items.
  template <class Put>
  __device__ __forceinline__ void run(Put put) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < items; i += kThreads) {
      const int h = i / kFours, d = i % kFours * 4;
      const Joined all = join(
          kWarps, [&](int n) { return s.held[n].part.rest[h]; },
          [&](int n) { return *reinterpret_cast<const float4*>(&s.held[n].part.sums[h][d]); });
      if (size == 1) {
        put(h, d, all);
        continue;
      }
      const int to = i & (size - 1), at = rank * each + (i >> bits);
      send(&s.sums[at], &s.arrived, to, all.sum);
      send(&s.rest[at], &s.arrived, to, all.rest);
    }
    if (size == 1) return;
    receive(&s.arrived);
#pragma unroll 1
    for (int k = threadIdx.x; k * size + rank < items; k += kThreads) {
      const int i = k * size + rank;
      put(i / kFours, i % kFours * 4,
          join(
              size, [&](int n) { return s.rest[n * each + k]; },
              [&](int n) { return s.sums[n * each + k]; }));
    }
  }

  static __device__ __forceinline__ void write(T* to, const Joined& all) {
    const float by = all.rest.y > 0 ? __fdividef(1.0f, all.rest.y) : 0.0f;
    *reinterpret_cast<uint2*>(to) = {pack<T>(all.sum.x * by, all.sum.y * by),
                                     pack<T>(all.sum.z * by, all.sum.w * by)};
  }

  // What clusters left in memory, as [cluster][head][D sums, largest score, total, nothing].
  __device__ __forceinline__ void join_clusters(const float* scratch, int used, T* out) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < items; i += kThreads) {
      const float* from = scratch + i / kFours * kEach;
      const auto rest = [&](int n) {
        return __ldcg(reinterpret_cast<const float2*>(from + n * kScratch + D));
      };
      const auto sums = [&](int n) {
        return __ldcg(reinterpret_cast<const float4*>(from + n * kScratch + i % kFours * 4));
      };
      write(out + i * 4, join(used, rest, sums));
    }
  }
};

}  // namespace qinfer::cuda::decoding
