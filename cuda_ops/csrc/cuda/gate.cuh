// The gated activation, eight numbers at a time.
#pragma once
#include "common.cuh"

namespace qinfer::cuda {

// silu(gate) * up, rounded to T.
template <class T>
__device__ __forceinline__ uint4 gate8(const uint4& gates, const uint4& ups) {
  float gate[8], up[8];
  unpack8<T>(gates, gate);
  unpack8<T>(ups, up);
#pragma unroll
  for (int j = 0; j < 8; ++j) gate[j] = __fdividef(gate[j], 1.0f + __expf(-gate[j])) * up[j];
  return pack8<T>(gate);
}

}  // namespace qinfer::cuda
