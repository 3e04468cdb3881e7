// Products of e4m3 weights and activations, which add in float.
#include <cmath>

#include "float_tiles.h"

namespace qinfer {
namespace {

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

// Every e4m3 number is a bfloat16 number too, and products of those come in pairs. A step of four
// inputs is 64 bytes; in each 16 of them lie four outputs' first two inputs, then their last two.
struct Tables {
  alignas(64) uint8_t low[128], high[128];  // the two bytes of each magnitude in bfloat16
};

Tables make_tables() {
  Tables tables;
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

const Tables kTables = make_tables();

struct Weights {
  using X = uint16_t;
  static constexpr int kStep = 4, kTile = 16, kBytes = 64;

  template <int R, int P>
  static void step(F32 (&acc)[R][P], const uint16_t* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const __m512i code = _mm512_loadu_si512(w[p] + s * kBytes);
      const __m512i low = look_up(kTables.low, code);
      // The table's byte, or the code's uppermost bit: a | (b & c).
      const __m512i high = _mm512_ternarylogic_epi64(look_up(kTables.high, code), code,
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

  static void write(uint16_t* to, F32 x) { store(to, to_bf16(x)); }
};

constexpr float kUnit = 1;

void product(const Job& job, const Worker& me) { run<Weights>(job, me); }

// Which byte of a step has input i of its four for output o.
int64_t place(int o, int i) { return o / 4 * 16 + i / 2 * 8 + o % 4 * 2 + i % 2; }

#else

struct Weights {
  using X = float;
  static constexpr int kStep = 1, kTile = kMostSums, kBytes = kLanes;
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

  static void write(float* to, F32 x) { store(to, x); }
};

constexpr float kUnit = 256;  // decode_e4m3 gives values 2^8 smaller

constexpr int64_t kDecodeRows = 32;  // from here on decoding e4m3 weights to float once pays

void product(const Job& job, const Worker& me) {
  job.rows < kDecodeRows ? run<Weights>(job, me) : run_decoded<Weights>(job, me);
}

int64_t place(int o, int) { return o; }

#endif

// Round a row to e4m3 values of the unit that is returned, zeros behind it.
float round_row(const float* x, Weights::X* to, int64_t in) {
  const float unit = std::max(largest_magnitude(x, in) / kE4M3Max, 1e-30f);
  const int64_t padded = divide_up(in, Weights::kStep) * Weights::kStep;
  for (int64_t k = 0; k < padded; k += kLanes) {
    float part[kLanes] = {};
    Weights::X rounded[kLanes];
    std::copy_n(x + k, std::max<int64_t>(std::min<int64_t>(kLanes, in - k), 0), part);
    Weights::write(rounded, round_e4m3(load<F32>(part) / unit));
    std::copy_n(rounded, std::min<int64_t>(kLanes, padded - k), to + k);
  }
  return unit;
}

}  // namespace

int64_t e4m3_panel_bytes(int64_t in) {
  return divide_up(in, Weights::kStep) * Weights::kStep * kLanes;
}

Task e4m3_product(const Job& job) {
  const int64_t stride = divide_up(job.in, Weights::kStep) * Weights::kStep;
  auto rounded = scratch<Weights::X>(job.rows * stride);
  auto unit = scratch<float>(job.rows);
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r)
        unit[r] = round_row(job.row(r), rounded.get() + r * stride, job.in) * kUnit;
    });
    me.wait();
    each_weight(job, [&](Job part, int64_t first) {
      part.x = reinterpret_cast<const float*>(rounded.get() + first * stride);
      part.x_stride = stride;
      part.row_scale = unit.get() + first;
      product(part, me);
    });
  };
}

void pack_e4m3(const uint8_t* weight, uint8_t* packed, int64_t out, int64_t in) {
  constexpr int kStep = Weights::kStep;
  const int64_t steps = divide_up(in, kStep);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p)
    for (int64_t s = 0; s < steps; ++s)
      for (int o = 0; o < kLanes; ++o)
        for (int i = 0; i < kStep; ++i) {
          const int64_t row = p * kLanes + o, k = s * kStep + i;
          packed[(p * steps + s) * kStep * kLanes + place(o, i)] =
              row < out && k < in ? weight[row * in + k] : 0;
        }
}

}  // namespace qinfer
