// AVX-512's dot products of four bytes in each lane.
#pragma once

#include "tiles.h"

namespace qinfer {

inline I32 splat4(const void* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return I32{} + four;
}

// acc += sum over the four bytes of each lane of unsigned x times signed w.
inline I32 dot4(I32 acc, I32 x, I32 w) {
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
}

}  // namespace qinfer
