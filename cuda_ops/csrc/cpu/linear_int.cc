// Products over integer weights: x becomes integers too, and the sums are exact.
#include <cmath>

#include "panels.h"

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

namespace qinfer {
namespace {

// ---- int8: x as two planes of eight bits, exact integer sums ----------------------------------

constexpr float kPlaneMax = 32639.0f;  // 127 * 256 + 127: the upper plane stays within a byte

// x = scale * (256 * (high - 128) + low), both planes unsigned as the instruction wants.
struct Planes {
  std::shared_ptr<uint8_t[]> high, low;
  std::shared_ptr<float[]> scale;
  int64_t stride;

  // Those of the rows from `first` on.
  Planes from(int64_t first) const {
    return {{high, high.get() + first * stride},
            {low, low.get() + first * stride},
            {scale, scale.get() + first},
            stride};
  }
};

void split_row(const float* row, int64_t in, const Planes& planes, int64_t r) {
  const float largest = largest_magnitude(row, in);
  const float inverse = largest > 0 ? kPlaneMax / largest : 0;
  uint8_t* high = planes.high.get() + r * planes.stride;
  uint8_t* low = planes.low.get() + r * planes.stride;
  int64_t k = 0;
  for (; k + kLanes <= in; k += kLanes) {
    const I32 q = __builtin_convertvector(nearest(load<F32>(row + k) * inverse), I32);
    store(high + k, __builtin_convertvector((q >> 8) + 128, U8));
    store(low + k, __builtin_convertvector(q & 255, U8));
  }
  for (; k < planes.stride; ++k) {
    const int32_t q = k < in ? static_cast<int32_t>(std::nearbyintf(row[k] * inverse)) : 0;
    high[k] = static_cast<uint8_t>((q >> 8) + 128);
    low[k] = static_cast<uint8_t>(q & 255);
  }
  planes.scale[r] = largest / kPlaneMax;
}

inline I32 splat4(const void* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return I32{} + four;
}

// acc += sum over the four bytes of each lane of unsigned x times signed w.
inline I32 dot4(I32 acc, I32 x, I32 w) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
#else
  for (int shift = 0; shift < 32; shift += 8)
    acc += ((x >> shift) & 255) * ((w << (24 - shift)) >> 24);
  return acc;
#endif
}

template <int R, int P>
void int8_tile(const Job& job, const Planes& x, int64_t row, int64_t p) {
  const int64_t steps = x.stride / 4;
  I32 high[R][P] = {}, low[R][P] = {}, sums[P] = {};
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const I32 w = load<I32>(job.w + (p + i) * job.panel + s * 64);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const int64_t at = (row + r) * x.stride + 4 * s;
        high[r][i] = dot4(high[r][i], splat4(&x.high[at]), w);
        low[r][i] = dot4(low[r][i], splat4(&x.low[at]), w);
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) {
    sums[i] = load<I32>(job.w + (p + i) * job.panel + steps * 64);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F32 upper = __builtin_convertvector(high[r][i] - 128 * sums[i], F32);
      const F32 lower = __builtin_convertvector(low[r][i], F32);
      finish(job, row + r, p + i, upper * 256.0f + lower);
    }
  }
}

// ---- int8 activations: one plane ---------------------------------------------------------------

// x = scale * (bytes - 128).
struct Plane {
  std::shared_ptr<uint8_t[]> bytes;
  std::shared_ptr<float[]> scale;
  int64_t stride;
};

// With `given` as the scale, or by the row's largest magnitude. Numbers are clipped to a byte.
void round_row(const float* row, int64_t in, const float* given, const Plane& plane, int64_t r) {
  const float scale = given ? *given : std::max(largest_magnitude(row, in) / 127.0f, 1e-30f);
  uint8_t* to = plane.bytes.get() + r * plane.stride;
  int64_t k = 0;
  for (; k < in; k += kLanes) {
    float buffer[kLanes] = {};
    const int64_t count = std::min<int64_t>(kLanes, in - k);
    std::copy_n(row + k, count, buffer);
    const F32 clipped = max(min(load<F32>(buffer) / scale, splat(127)), splat(-128));
    const I32 q = __builtin_convertvector(nearest(clipped), I32) + 128;
    uint8_t bytes[kLanes];
    store(bytes, __builtin_convertvector(q, U8));
    std::copy_n(bytes, count, to + k);
  }
  std::fill(to + in, to + plane.stride, uint8_t{128});
  plane.scale[r] = scale;
}

template <int R, int P>
void a8w8_tile(const Job& job, const Plane& x, int64_t row, int64_t p) {
  const int64_t steps = x.stride / 4;
  I32 acc[R][P] = {};
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const I32 w = load<I32>(job.w + (p + i) * job.panel + s * 64);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        acc[r][i] = dot4(acc[r][i], splat4(&x.bytes[(row + r) * x.stride + 4 * s]), w);
    }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) {
    const I32 sums = load<I32>(job.w + (p + i) * job.panel + steps * 64);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      finish(job, row + r, p + i, __builtin_convertvector(acc[r][i] - 128 * sums, F32));
  }
}

// ---- int4: groups of 64 inputs with a scale each ---------------------------------------------

constexpr int64_t kGroupInputs = 64, kGroupBytes = kGroupInputs / 2 * kLanes;
constexpr float kSmallPlaneMax = 16319.0f;  // 127 * 128 + 63

// In each group x = scale * (128 * high + low), both planes signed: here the weights, 0 to 15, are
// unsigned. `sums`: of every group's numbers, to take the weights' offset of 8 off again.
struct SignedPlanes {
  std::shared_ptr<int8_t[]> high, low;
  std::shared_ptr<float[]> scale, sums;

  // Those of the groups from `first` on.
  SignedPlanes from(int64_t first) const {
    return {{high, high.get() + first * kGroupInputs},
            {low, low.get() + first * kGroupInputs},
            {scale, scale.get() + first},
            {sums, sums.get() + first}};
  }
};

// Group g of all, whose inputs are at x.
void split_group(const float* x, const SignedPlanes& planes, int64_t g) {
  const int64_t first = g * kGroupInputs;
  const float largest = largest_magnitude(x, kGroupInputs);
  const float inverse = largest > 0 ? kSmallPlaneMax / largest : 0;
  I32 total = {};
  for (int64_t k = first; k < first + kGroupInputs; k += kLanes) {
    const I32 q = __builtin_convertvector(nearest(load<F32>(x + k - first) * inverse), I32);
    const I32 low = ((q + 64) & 127) - 64;
    total += q;
    store(&planes.low[k], __builtin_convertvector(low, I8));
    store(&planes.high[k], __builtin_convertvector((q - low) >> 7, I8));
  }
  planes.sums[g] = sum(__builtin_convertvector(total, F32));
  planes.scale[g] = largest / kSmallPlaneMax;
}

template <int R, int P>
void int4_tile(const Job& job, const SignedPlanes& x, int64_t row, int64_t p) {
  const int64_t groups = job.in / kGroupInputs;
  F32 acc[R][P] = {};
  for (int64_t g = 0; g < groups; ++g) {
    I32 high[R][P] = {}, low[R][P] = {};
    for (int64_t s = 0; s < kGroupInputs / 8; ++s)
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i) {
        const char* at = job.w + (p + i) * job.panel + g * kGroupBytes + s * 64;
        const I32 both = load<I32>(at);
        const I32 first = both & 0x0F0F0F0F, second = (both >> 4) & 0x0F0F0F0F;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const int64_t k = (row + r) * job.in + g * kGroupInputs + s * 8;
          high[r][i] = dot4(high[r][i], first, splat4(&x.high[k]));
          high[r][i] = dot4(high[r][i], second, splat4(&x.high[k + 4]));
          low[r][i] = dot4(low[r][i], first, splat4(&x.low[k]));
          low[r][i] = dot4(low[r][i], second, splat4(&x.low[k + 4]));
        }
      }
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const F32 scale = load<F32>(job.scale + ((p + i) * groups + g) * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F32 upper = __builtin_convertvector(high[r][i], F32) * 128.0f;
        const F32 lower = __builtin_convertvector(low[r][i], F32);
        const int64_t at = (row + r) * groups + g;
        acc[r][i] += (upper + lower - 8.0f * x.sums[at]) * (scale * x.scale[at]);
      }
    }
  }
  Job plain = job;  // the scales have been used up
  plain.scale = nullptr;
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < P; ++i) finish(plain, row + r, p + i, acc[r][i]);
}

// Call Tile<rows at once, panels at once> over all rows and the panels p to end.
template <template <int, int> class Tile, int R, typename X>
void panels_of(const Job& job, const X& x, int64_t row, int64_t p, int64_t end) {
  if constexpr (R == 1)
    for (; p + 8 <= end; p += 8) Tile<R, 8>::run(job, x, row, p);
  if constexpr (R <= 2 || Tile<R, 4>::kPanels == 4)
    for (; p + 4 <= end; p += 4) Tile<R, 4>::run(job, x, row, p);
  for (; p + 2 <= end; p += 2) Tile<R, 2>::run(job, x, row, p);
  for (; p < end; ++p) Tile<R, 1>::run(job, x, row, p);
}

template <template <int, int> class Tile, int kMost, typename X>
void over_tiles(const Job& job, const X& x, const Worker& me) {
  me.share(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    const int64_t group = job.rows < kManyRows ? std::max<int64_t>(end - first, 1) : kGroup;
    for (int64_t p = first; p < end; p += group) {
      const int64_t stop = std::min(p + group, end);
      int64_t row = 0;
      for (; row + kMost <= job.rows; row += kMost) panels_of<Tile, kMost>(job, x, row, p, stop);
      for (; row + 2 <= job.rows; row += 2) panels_of<Tile, 2>(job, x, row, p, stop);
      for (; row < job.rows; ++row) panels_of<Tile, 1>(job, x, row, p, stop);
    }
  });
}

template <int R, int P>
struct Int8Tile {
  static constexpr int kPanels = 2;  // at once, for many rows: what the registers hold
  static void run(const Job& job, const Planes& x, int64_t row, int64_t p) {
    int8_tile<R, P>(job, x, row, p);
  }
};

template <int R, int P>
struct A8W8Tile {
  static constexpr int kPanels = 4;
  static void run(const Job& job, const Plane& x, int64_t row, int64_t p) {
    a8w8_tile<R, P>(job, x, row, p);
  }
};

template <int R, int P>
struct Int4Tile {
  static constexpr int kPanels = 2;
  static void run(const Job& job, const SignedPlanes& x, int64_t row, int64_t p) {
    int4_tile<R, P>(job, x, row, p);
  }
};

}  // namespace

int64_t int8_panel_bytes(int64_t in) { return (divide_up(in, 4) + 1) * 64; }
int64_t int4_panel_bytes(int64_t in) { return in / 2 * kLanes; }

Task int8_product(const Job& job) {
  const int64_t stride = divide_up(job.in, 4) * 4, size = job.rows * stride;
  const Planes x{scratch<uint8_t>(size), scratch<uint8_t>(size), scratch<float>(job.rows), stride};
  Job product = job;
  product.row_scale = x.scale.get();
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) split_row(job.row(r), job.in, x, r);
    });
    me.wait();
    each_weight(product, [&](const Job& part, int64_t first) {
      over_tiles<Int8Tile, 6>(part, x.from(first), me);
    });
  };
}

Task a8w8_product(const Job& job, const float* input_scale) {
  const int64_t stride = divide_up(job.in, 4) * 4;
  const Plane x{scratch<uint8_t>(job.rows * stride), scratch<float>(job.rows), stride};
  Job product = job;
  product.row_scale = x.scale.get();
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r)
        round_row(job.x + r * job.in, job.in, input_scale, x, r);
    });
    me.wait();
    over_tiles<A8W8Tile, 6>(product, x, me);
  };
}

Task int4_product(const Job& job) {
  const int64_t size = job.rows * job.in, groups = size / kGroupInputs;
  const int64_t in_row = job.in / kGroupInputs;
  const SignedPlanes x{scratch<int8_t>(size), scratch<int8_t>(size), scratch<float>(groups),
                       scratch<float>(groups)};
  return [=](const Worker& me) {
    me.share(groups, [&](int64_t first, int64_t end) {
      for (int64_t g = first; g < end; ++g)
        split_group(job.row(g / in_row) + g % in_row * kGroupInputs, x, g);
    });
    me.wait();
    each_weight(job, [&](const Job& part, int64_t first) {
      over_tiles<Int4Tile, 4>(part, x.from(first * in_row), me);
    });
  };
}

// The sum of each output's weights follows its panel: the planes' offset is taken off with it.
void pack_int8(const int8_t* weight, char* packed, int64_t out, int64_t in) {
  const int64_t steps = divide_up(in, 4), bytes = (steps + 1) * 64;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p) {
    const int64_t rows = std::min<int64_t>(kLanes, out - p * kLanes);
    pack_panels(weight + p * kLanes * in, reinterpret_cast<int8_t*>(packed + p * bytes), rows, in,
                4);
    int32_t sums[kLanes] = {};
    for (int64_t o = 0; o < rows; ++o)
      for (int64_t k = 0; k < in; ++k) sums[o] += weight[(p * kLanes + o) * in + k];
    std::memcpy(packed + p * bytes + steps * 64, sums, 64);
  }
}

// Values -8 to 7; a byte holds input k of its step in its low half and input k + 4 in its high one.
void pack_int4(const int8_t* weight, char* packed, int64_t out, int64_t in) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p) {
    char* to = packed + p * int4_panel_bytes(in);
    for (int64_t s = 0; s < in / 8; ++s)
      for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int64_t o = p * kLanes + lane, at = o * in + s * 8 + i;
          const int low = o < out ? weight[at] + 8 : 8, high = o < out ? weight[at + 4] + 8 : 8;
          *to++ = static_cast<char>(low | high << 4);
        }
  }
}

}  // namespace qinfer
