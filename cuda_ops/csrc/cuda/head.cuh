// A head's numbers in the lanes of a warp, from the QKV product on: its norm, its rotation, and its
// way into the KV cache.
#pragma once
#include "cache.cuh"

namespace qinfer::cuda {

// Lane i has numbers i, i + 32, … of the lower half of a head's D, and those of the upper half that
// they are rotated with.
template <int D>
struct Head {
  static constexpr int kPairs = (D / 2 + 31) / 32;
  float low[kPairs] = {}, high[kPairs] = {};

  static __device__ __forceinline__ int number_of(int j) { return j * 32 + threadIdx.x % 32; }
  static __device__ __forceinline__ bool has(int j) { return D >= 64 || number_of(j) < D / 2; }

  // put(d, number) for every number of this lane.
  template <class Put>
  __device__ __forceinline__ void each(Put put) const {
#pragma unroll
    for (int j = 0; j < kPairs; ++j)
      if (has(j)) put(number_of(j), low[j]), put(number_of(j) + D / 2, high[j]);
  }

  template <class From>
  static __device__ __forceinline__ Head read(const From* row) {
    Head h;
#pragma unroll
    for (int j = 0; j < kPairs; ++j)
      if (has(j))
        h.low[j] = number(row[number_of(j)]), h.high[j] = number(row[number_of(j) + D / 2]);
    return h;
  }

  // As a row of 16-bit numbers would hold it.
  template <class T>
  __device__ __forceinline__ void normalise(const Head& weight, float eps) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) squares += low[j] * low[j] + high[j] * high[j];
    const float factor = rsqrtf(warp_sum(squares) / D + eps);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      low[j] = number(T(low[j] * factor * weight.low[j]));
      high[j] = number(T(high[j] * factor * weight.high[j]));
    }
  }

  __device__ __forceinline__ void rotate(const Head& cos, const Head& sin) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float a = low[j], b = high[j];
      low[j] = a * cos.low[j] + b * sin.low[j];
      high[j] = b * cos.high[j] + a * sin.high[j];
    }
  }

  __device__ __forceinline__ float largest() const {
    float most = 0;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) most = fmaxf(most, fmaxf(fabsf(low[j]), fabsf(high[j])));
    return warp_max(most);
  }
};

// The scale that a cache of this kind holds a head with.
template <class T, Format F, int D>
__device__ __forceinline__ float scale_of(const Head<D>& head) {
  if constexpr (F == Format::kPlain)
    return 1;
  else
    return fmaxf(head.largest() / Stored<T, F>::kMost, 1e-30f);
}

}  // namespace qinfer::cuda
