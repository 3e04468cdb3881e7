// Products of integer weights with x rounded to 16 bits: processors multiply pairs of 16-bit
// numbers and add both products into a 32-bit lane, exactly.
#pragma once

#include "tiles.h"

namespace qinfer {

// Two 16-bit numbers in each lane.
typedef int16_t Pairs __attribute__((vector_size(4 * kLanes), aligned(2)));
typedef uint16_t UPairs __attribute__((vector_size(4 * kLanes), aligned(2)));

inline I32 add_products(I32 sum, Pairs w, I32 x) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVX512BW__)
  return sum + (I32)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
  return sum + (I32)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#elif defined(__SSE2__)
  return sum + (I32)_mm_madd_epi16((__m128i)w, (__m128i)x);
#else
  return sum + ((I32)w >> 16) * (x >> 16) + ((I32)w << 16 >> 16) * (x << 16 >> 16);
#endif
}

// Bytes, widened to 16 bits.
inline Pairs widen_bytes(const char* from) {
#if defined(__AVX512BW__)
  return (Pairs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Pairs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#else
  typedef int8_t Both __attribute__((vector_size(2 * kLanes), aligned(1)));
  return __builtin_convertvector(load<Both>(from), Pairs);
#endif
}

inline I32 splat_pair(const int16_t* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return I32{} + pair;
}

// sum[r][p] += w[p] times the pair of x[r] from k on.
template <int R, int P>
inline void add_pairs(I32 (&sum)[R][P], const Pairs (&w)[P], const int16_t* const (&x)[R],
                      int64_t k) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const I32 pair = splat_pair(x[r] + k);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[r][p] = add_products(sum[r][p], w[p], pair);
  }
}

// x as integers: in each group of a row, x = scale * numbers. A group's numbers take `padded`
// places, those behind its last are zeros.
struct Rounded {
  std::shared_ptr<int16_t[]> numbers;  // [rows, groups, padded]
  std::shared_ptr<float[]> scale;      // [rows, groups]
  std::shared_ptr<int32_t[]> sums;     // [rows, groups], of the numbers
  int64_t groups, padded;
  int64_t shared;  // groups in a row that one scale of the weight is for
  int64_t exact;   // inputs whose products a 32-bit sum holds whatever they are

  static Rounded make(int64_t rows, int64_t groups, int64_t padded, int64_t shared, int64_t exact) {
    const int64_t count = rows * groups;
    return {scratch<int16_t>(count * padded),
            scratch<float>(count),
            scratch<int32_t>(count),
            groups,
            padded,
            shared,
            exact};
  }

  // That of the rows from `first` on.
  Rounded from(int64_t first) const {
    Rounded part = *this;
    part.numbers = {numbers, numbers.get() + first * groups * padded};
    part.scale = {scale, scale.get() + first * groups};
    part.sums = {sums, sums.get() + first * groups};
    return part;
  }

  // Group g of all, whose `count` inputs are at x; divided by `by`, to integers within the bounds.
  void round(const float* x, int64_t count, int64_t g, float by, float least, float most) const;
};

// Weights of 16 bits, two inputs a step: what the others become for many rows.
struct Wide {
  static constexpr int kStep = 2, kBytes = 4 * kLanes, kOffset = 0;
  template <int R, int P>
  static void step(I32 (&sum)[R][P], const int16_t* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
    Pairs wide[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) wide[p] = load<Pairs>(w[p] + s * kBytes);
    add_pairs(sum, wide, x, s * kStep);
  }
};

// Weights of a byte, two inputs a step.
struct Bytes {
  static constexpr int kStep = 2, kBytes = 2 * kLanes, kOffset = 0;
  template <int R, int P>
  static void step(I32 (&sum)[R][P], const int16_t* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
    Pairs wide[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) wide[p] = widen_bytes(w[p] + s * kBytes);
    add_pairs(sum, wide, x, s * kStep);
  }

  static void widen(const char* from, int16_t* to, int64_t steps) {
    for (int64_t s = 0; s < steps; ++s) store(to + s * 2 * kLanes, widen_bytes(from + s * kBytes));
  }
};

// Weights of half a byte, 8 more than they stand for, eight inputs a step: four pairs of 16 bits,
// in the order of the bits.
struct Nibbles {
  static constexpr int kStep = 8, kBytes = 4 * kLanes, kOffset = 8;
  template <int R, int P>
  static void step(I32 (&sum)[R][P], const int16_t* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
    if constexpr (R == 1) return one_row(sum[0], x[0] + s * kStep, w, s);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Pairs wide[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) wide[p] = pair(load<UPairs>(w[p] + s * kBytes), i);
      add_pairs(sum, wide, x, s * kStep + 2 * i);
    }
  }

  // Panel by panel: one row's sums and x stay in the registers, and no weight has to.
  template <int P>
  static void one_row(I32 (&sum)[P], const int16_t* x, const char* const (&w)[P], int64_t s) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const UPairs all = load<UPairs>(w[p] + s * kBytes);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        sum[p] = add_products(sum[p], pair(all, i), splat_pair(x + 2 * i));
    }
  }

  static Pairs pair(UPairs all, int i) {
    return (Pairs)(i == 3 ? all >> 12 : all >> (4 * i) & (uint16_t)15);
  }

  // With the 8 taken off.
  static void widen(const char* from, int16_t* to, int64_t steps) {
    for (int64_t s = 0; s < steps; ++s, to += 8 * kLanes) {
      const UPairs all = load<UPairs>(from + s * kBytes);
      for (int i = 0; i < 4; ++i)
        store(to + i * 2 * kLanes, (Pairs)(all >> (4 * i) & (uint16_t)15) - (int16_t)kOffset);
    }
  }
};

// R rows times P panels. With `scale` [panels, groups / shared, lanes] every group's sum is scaled
// by it and by x's; without, there is one group, and x's scale is left to the end (Job::row_scale).
template <typename W, int R, int P>
void pair_tile(const Job& job, const Rounded& x, const float* scale, int64_t row,
               const Places& places) {
  const int64_t steps = x.padded / W::kStep, flush = x.exact / W::kStep;
  const Ahead<R, P, W::kBytes> ahead(job, places);
  F32 total[R][P] = {};
  for (int64_t g = 0; g < x.groups; ++g)
    for (int64_t first = 0; first < steps; first += flush) {
      const int64_t count = std::min(flush, steps - first);
      const int16_t* numbers[R];
      const char* weights[P];
      I32 sum[R][P];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int64_t at = (row + r) * x.groups + g;
        numbers[r] = &x.numbers[at * x.padded + first * W::kStep];
        const int32_t start = W::kOffset && first == 0 ? -W::kOffset * x.sums[at] : 0;
#pragma GCC unroll 8
        for (int i = 0; i < P; ++i) sum[r][i] = I32{} + start;
      }
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i)
        weights[i] = job.w + places[i] * job.panel + (g * steps + first) * W::kBytes;
      for (int64_t s = 0; s < count; ++s) {
        ahead.ask(weights, s);
        W::step(sum, numbers, weights, s);
      }
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        const int64_t at = places[i] * (x.groups / x.shared) + g / x.shared;
        const F32 by = scale ? load<F32>(scale + at * kLanes) : splat(1);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const F32 part = __builtin_convertvector(sum[r][i], F32);
          const F32 with = by * (scale ? x.scale[(row + r) * x.groups + g] : 1.0f);
          total[r][i] = add_product(total[r][i], part, with);
        }
      }
    }
#pragma GCC unroll 8
  for (int i = 0; i < P; ++i) finish(job, row, R, places[i], &total[0][i], P);
}

}  // namespace qinfer
