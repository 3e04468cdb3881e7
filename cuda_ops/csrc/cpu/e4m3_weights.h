// Weights in e4m3 as the float tiles want them, and x rounded to e4m3.
//   rounded      numbers of x that e4m3 holds, in the type X
//   kUnit        what one of its weights stands for
//   kDecodes     whether there is a `decode` for many rows
//   place(o, i)  which byte of a step has input i of output o of a panel
#pragma once

#include <cmath>

#include "float_tiles.h"
#include "tiles.h"

namespace qinfer {

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

// Every e4m3 number is a bfloat16 number too, and products of those come in pairs. A step of four
// inputs is 64 bytes; in each 16 of them lie four outputs' first two inputs, then their last two.
struct E4M3Tables {
  alignas(64) uint8_t low[128], high[128];  // the two bytes of each magnitude in bfloat16
};

inline E4M3Tables make_e4m3_tables() {
  E4M3Tables tables;
  for (int code = 0; code < 128; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    const float value = exponent ? std::ldexp(8.0f + mantissa, exponent - 10)
                                 : std::ldexp(static_cast<float>(mantissa), -9);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (code == 127) bits = 0x7FC00000u;  // NaN
    tables.low[code] = bits >> 16 & 255;
    tables.high[code] = bits >> 24;
  }
  return tables;
}

inline const E4M3Tables kE4M3Tables = make_e4m3_tables();

struct E4M3Weights {
  using X = uint16_t;
  static constexpr int kStep = 4, kTile = 16, kBytes = 64;
  static constexpr float kUnit = 1;
  static constexpr bool kDecodes = false;

  template <int R, int P>
  static void step(F32 (&acc)[R][P], const uint16_t* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const __m512i code = _mm512_loadu_si512(w[p] + s * kBytes);
      const __m512i low = look_up(kE4M3Tables.low, code);
      // The table's byte, or the code's uppermost bit: a | (b & c).
      const __m512i high = _mm512_ternarylogic_epi64(look_up(kE4M3Tables.high, code), code,
                                                     _mm512_set1_epi8(-128), 0xF8);
      const __m512i first = _mm512_unpacklo_epi8(low, high);
      const __m512i second = _mm512_unpackhi_epi8(low, high);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        acc[r][p] = dot2(acc[r][p], first, x[r] + 4 * s);
        acc[r][p] = dot2(acc[r][p], second, x[r] + 4 * s + 2);
      }
    }
  }

  static __m512i look_up(const uint8_t* table, __m512i code) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), code, _mm512_load_si512(table + 64));
  }

  static F32 dot2(F32 acc, __m512i w, const uint16_t* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (F32)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
  }

  static U16 rounded(F32 x) { return to_bf16(x); }

  // Which byte of a step has input i of its four for output o.
  static int64_t place(int o, int i) { return o / 4 * 16 + i / 2 * 8 + o % 4 * 2 + i % 2; }
};

#else

struct E4M3Weights {
  using X = float;
  static constexpr int kStep = 1, kTile = kMostSums, kBytes = kLanes;
  static constexpr float kUnit = 256;     // decode_e4m3 gives values 2^8 smaller
  static constexpr bool kDecodes = true;  // to float, once for many rows

  template <int R, int P>
  static void step(F32 (&acc)[R][P], const float* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
    F32 v[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) v[p] = decode_e4m3(w[p] + s * kBytes);
    add_products(acc, v, x, s);
  }

  static void decode(const char* from, float* to, int64_t steps) {
    for (int64_t s = 0; s < steps; ++s) store(to + s * kLanes, decode_e4m3(from + s * kBytes));
  }

  static F32 rounded(F32 x) { return x; }

  static int64_t place(int o, int) { return o; }
};

#endif

constexpr int64_t kDecodeRows = 32;  // from here on decoding e4m3 weights to float once pays

// Whole steps of inputs.
inline int64_t e4m3_stride(int64_t in) {
  return divide_up(in, E4M3Weights::kStep) * E4M3Weights::kStep;
}

// Round x / unit to e4m3, zeros behind it up to `padded`.
inline void round_to_e4m3(const float* x, E4M3Weights::X* to, int64_t in, int64_t padded,
                          float unit) {
  for (int64_t k = 0; k < padded; k += kLanes) {
    const F32 part = load_some(x + k, std::max<int64_t>(in - k, 0));
    store_some(to + k, E4M3Weights::rounded(round_e4m3(part / unit)), padded - k);
  }
}

// By which the largest magnitude becomes that of e4m3.
inline float e4m3_unit(const float* x, int64_t count) {
  return std::max(largest_magnitude(x, count) / kE4M3Max, 1e-30f);
}

// Weights with a scale for each block of `size` outputs by `size` inputs, [., runs], and x with one
// for each run of so many inputs, [rows, runs].
struct Blocks {
  const float *scale, *units;
  int64_t size, runs;
};

}  // namespace qinfer
