#include "linear.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "simd.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Layout. A panel holds 16 outputs: for each step along the inputs, the 16 weights of every input
// of that step, side by side. A step is 1 input (float, e4m3), 2 (bfloat16: the pair shares a
// 32-bit lane) or 4 (int8: the four share a 32-bit lane, as the dot-product instructions want).
// Every accumulator adds its inputs in order, whatever the number of rows, so results do not
// depend on what else is in the batch.

namespace qinfer {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int step_inputs(Format format) {
  return format == Format::kInt8 ? 4 : format == Format::kBF16 ? 2 : 1;
}

int item_bytes(Format format) {
  return format == Format::kF32 ? 4 : format == Format::kBF16 ? 2 : 1;
}

int64_t panel_bytes(Format format, int64_t in) {
  const int step = step_inputs(format);
  const int64_t sums = format == Format::kInt8 ? kLanes * sizeof(int32_t) : 0;
  return divide_up(in, step) * step * kLanes * item_bytes(format) + sums;
}

template <typename T>
void pack(const T* weight, T* packed, int64_t out, int64_t in, int step) {
  const int64_t steps = divide_up(in, step), panels = divide_up(out, kLanes);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < panels; ++p) {
    T* to = packed + p * steps * kLanes * step;
    for (int64_t s = 0; s < steps; ++s)
      for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < step; ++i) {
          const int64_t o = p * kLanes + lane, k = s * step + i;
          *to++ = o < out && k < in ? weight[o * in + k] : T(0);
        }
  }
}

// ---- one step of each format: acc[r][p] += x[r][k..] * panel p's weights ----------------------

struct F32Weights {
  static constexpr int kStep = 1, kBytes = 64;
  template <int R, int P>
  static void step(F32 (&acc)[R][P], const float* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const F32 v = load<F32>(w[p] + s * kBytes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][p] += v * x[r][s];
    }
  }
};

struct BF16Weights {
  static constexpr int kStep = 2, kBytes = 64;
  template <int R, int P>
  static void step(F32 (&acc)[R][P], const float* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const U32 pair = load<U32>(w[p] + s * kBytes);
      const F32 even = (F32)(pair << 16), odd = (F32)(pair & 0xFFFF0000u);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        acc[r][p] += even * x[r][2 * s];
        acc[r][p] += odd * x[r][2 * s + 1];
      }
    }
  }
};

// Seven bits up, an e4m3 reads as a float16 that is 2^8 smaller; the mask clears the copy of the
// sign that the widening left in bit 14.
inline F32 decode_e4m3(const void* bytes) {
  const I16 wide = __builtin_convertvector(load<I8>(bytes), I16);
  const I16 bits = (wide << 7) & (int16_t)0xBF80;
#if defined(__AVX512F__)
  return (F32)_mm512_cvtph_ps((__m256i)bits);
#else  // the same value by way of a float with the exponent 112 too small
  const U32 all = __builtin_convertvector((U16)bits, U32);
  return (F32)(((all & 0x8000u) << 16) | ((all & 0x7FFFu) << 13)) * 0x1p112f;
#endif
}

struct E4M3Weights {
  static constexpr int kStep = 1, kBytes = 16;
  template <int R, int P>
  static void step(F32 (&acc)[R][P], const float* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const F32 v = decode_e4m3(w[p] + s * kBytes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][p] += v * x[r][s];
    }
  }
};

template <typename W, int R, int P>
void tile(const float* x, int64_t stride, const char* w, int64_t panel, int64_t steps,
          F32 (&acc)[R][P]) {
  const float* rows[R];
  const char* panels[P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) rows[r] = x + r * stride;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) panels[p] = w + p * panel;
  for (auto& row : acc)
    for (auto& a : row) a = F32{};
  for (int64_t s = 0; s < steps; ++s) W::template step<R, P>(acc, rows, panels, s);
}

struct Job {
  const float* x;
  int64_t x_stride, in, out, rows;
  const char* w;
  int64_t panel;           // bytes of one panel
  const float* scale;      // [out] or null
  const float* row_scale;  // [rows] or null
  const float* bias;       // [out] or null
  float* y;
};

// y for 16 outputs of one row; the last panel may have fewer.
inline void finish(const Job& job, int64_t row, int64_t p, F32 v) {
  const int64_t o = p * kLanes;
  const int64_t count = std::min<int64_t>(kLanes, job.out - o);
  float* y = job.y + row * job.out + o;
  float buffer[kLanes], scale[kLanes] = {}, bias[kLanes] = {};
  if (job.row_scale) v *= job.row_scale[row];
  if (count == kLanes) {
    if (job.scale) v *= load<F32>(job.scale + o);
    if (job.bias) v += load<F32>(job.bias + o);
    store(y, v);
    return;
  }
  if (job.scale) std::copy_n(job.scale + o, count, scale), v *= load<F32>(scale);
  if (job.bias) std::copy_n(job.bias + o, count, bias), v += load<F32>(bias);
  store(buffer, v);
  std::copy_n(buffer, count, y);
}

template <typename W, int R, int P>
void run_tile(const Job& job, int64_t row, int64_t p) {
  F32 acc[R][P];
  tile<W, R, P>(job.x + row * job.x_stride, job.x_stride, job.w + p * job.panel, job.panel,
                divide_up(job.in, W::kStep), acc);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) finish(job, row + r, p + i, acc[r][i]);
}

template <typename W, int R>
void run_panels(const Job& job, int64_t row, int64_t p, int64_t end) {
  if constexpr (R == 1)  // a single row needs many panels to hide the adder's latency
    for (; p + 8 <= end; p += 8) run_tile<W, R, 8>(job, row, p);
  for (; p + 4 <= end; p += 4) run_tile<W, R, 4>(job, row, p);
  for (; p + 2 <= end; p += 2) run_tile<W, R, 2>(job, row, p);
  for (; p < end; ++p) run_tile<W, R, 1>(job, row, p);
}

template <typename W>
void run_rows(const Job& job, int64_t p, int64_t end) {
  int64_t row = 0;
  for (; row + 6 <= job.rows; row += 6) run_panels<W, 6>(job, row, p, end);
  for (; row + 4 <= job.rows; row += 4) run_panels<W, 4>(job, row, p, end);
  for (; row + 2 <= job.rows; row += 2) run_panels<W, 2>(job, row, p, end);
  for (; row < job.rows; ++row) run_panels<W, 1>(job, row, p, end);
}

constexpr int64_t kGroup = 4;      // panels decoded together for many rows
constexpr int64_t kManyRows = 12;  // from here on decoding once pays

template <typename W>
void decode_panel(const char* from, float* to, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s) {
    if constexpr (W::kStep == 2) {
      const U32 pair = load<U32>(from + s * 64);
      store(to + 2 * s * kLanes, (F32)(pair << 16));
      store(to + (2 * s + 1) * kLanes, (F32)(pair & 0xFFFF0000u));
    } else {
      store(to + s * kLanes, decode_e4m3(from + s * W::kBytes));
    }
  }
}

// Many rows: decode a few panels to float (they stay in the cache), then use the float kernel,
// which adds in the same order.
template <typename W>
void run_decoded(const Job& job, int64_t first, int64_t end) {
  const int64_t steps = divide_up(job.in, W::kStep), inputs = steps * W::kStep;
  std::vector<float> scratch(kGroup * inputs * kLanes);
  for (int64_t p = first; p < end; p += kGroup) {
    const int64_t count = std::min(kGroup, end - p);
    for (int64_t i = 0; i < count; ++i)
      decode_panel<W>(job.w + (p + i) * job.panel, scratch.data() + i * inputs * kLanes, steps);
    Job part = job;
    part.in = inputs;
    part.panel = inputs * kLanes * sizeof(float);
    part.w = reinterpret_cast<const char*>(scratch.data()) - p * part.panel;
    run_rows<F32Weights>(part, p, p + count);
  }
}

template <typename W>
void run(const Job& job) {
  share_evenly(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    if (job.rows < kManyRows) return run_rows<W>(job, first, end);
    if constexpr (!std::is_same_v<W, F32Weights>) return run_decoded<W>(job, first, end);
    for (int64_t p = first; p < end; p += kGroup)
      run_rows<F32Weights>(job, p, std::min(p + kGroup, end));
  });
}

// ---- int8: x as two planes of eight bits, exact integer sums ----------------------------------

constexpr float kPlaneMax = 32639.0f;  // 127 * 256 + 127: the upper plane stays within a byte

// x = scale * (256 * (high - 128) + low), both planes unsigned as the instruction wants.
struct Planes {
  std::vector<uint8_t> high, low;
  std::vector<float> scale;
  int64_t stride;
};

Planes split_planes(const float* x, int64_t rows, int64_t in) {
  Planes planes;
  planes.stride = divide_up(in, 4) * 4;
  planes.high.assign(rows * planes.stride, 128);
  planes.low.assign(rows * planes.stride, 0);
  planes.scale.resize(rows);
#pragma omp parallel for schedule(static) if (rows > 4)
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * in;
    const float largest = largest_magnitude(row, in);
    const float inverse = largest > 0 ? kPlaneMax / largest : 0;
    uint8_t* high = planes.high.data() + r * planes.stride;
    uint8_t* low = planes.low.data() + r * planes.stride;
    int64_t k = 0;
    for (; k + kLanes <= in; k += kLanes) {
      const I32 q = __builtin_convertvector(nearest(load<F32>(row + k) * inverse), I32);
      store(high + k, __builtin_convertvector((q >> 8) + 128, U8));
      store(low + k, __builtin_convertvector(q & 255, U8));
    }
    for (; k < in; ++k) {
      const int32_t q = static_cast<int32_t>(std::nearbyintf(row[k] * inverse));
      high[k] = static_cast<uint8_t>((q >> 8) + 128);
      low[k] = static_cast<uint8_t>(q & 255);
    }
    planes.scale[r] = largest / kPlaneMax;
  }
  return planes;
}

inline I32 splat4(const uint8_t* p) {
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

template <int R>
void int8_panels(const Job& job, const Planes& x, int64_t row, int64_t p, int64_t end) {
  if constexpr (R == 1)
    for (; p + 8 <= end; p += 8) int8_tile<R, 8>(job, x, row, p);
  if constexpr (R <= 2)
    for (; p + 4 <= end; p += 4) int8_tile<R, 4>(job, x, row, p);
  for (; p + 2 <= end; p += 2) int8_tile<R, 2>(job, x, row, p);
  for (; p < end; ++p) int8_tile<R, 1>(job, x, row, p);
}

void run_int8(Job job) {
  const Planes x = split_planes(job.x, job.rows, job.in);
  job.row_scale = x.scale.data();
  share_evenly(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    const int64_t group = job.rows < kManyRows ? end - first : kGroup;
    for (int64_t p = first; p < end; p += group) {
      const int64_t stop = std::min(p + group, end);
      int64_t row = 0;
      for (; row + 6 <= job.rows; row += 6) int8_panels<6>(job, x, row, p, stop);
      for (; row + 2 <= job.rows; row += 2) int8_panels<2>(job, x, row, p, stop);
      for (; row < job.rows; ++row) int8_panels<1>(job, x, row, p, stop);
    }
  });
}

// The sum of each output's weights follows its panel: the planes' offset is taken off with it.
void pack_int8(const int8_t* weight, char* packed, int64_t out, int64_t in) {
  const int64_t steps = divide_up(in, 4), bytes = (steps + 1) * 64;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p) {
    const int64_t rows = std::min<int64_t>(kLanes, out - p * kLanes);
    pack(weight + p * kLanes * in, reinterpret_cast<int8_t*>(packed + p * bytes), rows, in, 4);
    int32_t sums[kLanes] = {};
    for (int64_t o = 0; o < rows; ++o)
      for (int64_t k = 0; k < in; ++k) sums[o] += weight[(p * kLanes + o) * in + k];
    std::memcpy(packed + p * bytes + steps * 64, sums, 64);
  }
}

// ---- e4m3 activations -------------------------------------------------------------------------

constexpr float kE4M3Max = 448.0f;

// The nearest e4m3 values, ties to even, saturating at 448.
inline F32 round_e4m3(F32 x) {
  x = x > kE4M3Max ? splat(kE4M3Max) : x;
  x = x < -kE4M3Max ? splat(-kE4M3Max) : x;
  const U32 bits = (U32)x;
  const F32 normal = (F32)((bits + 0x7FFFFu + ((bits >> 20) & 1u)) & 0xFFF00000u);
  const F32 subnormal = nearest(x * 512.0f) / 512.0f;
  return abs(x) < 0.015625f ? subnormal : normal;
}

void run_e4m3(Job job) {
  std::vector<float> rounded(job.rows * job.in), scale(job.rows);
#pragma omp parallel for schedule(static) if (job.rows > 4)
  for (int64_t r = 0; r < job.rows; ++r) {
    const float* row = job.x + r * job.in;
    float* to = rounded.data() + r * job.in;
    const float unit = std::max(largest_magnitude(row, job.in) / kE4M3Max, 1e-30f);
    int64_t k = 0;
    for (; k + kLanes <= job.in; k += kLanes) store(to + k, round_e4m3(load<F32>(row + k) / unit));
    if (k < job.in) {
      float rest[kLanes] = {};
      std::copy_n(row + k, job.in - k, rest);
      store(rest, round_e4m3(load<F32>(rest) / unit));
      std::copy_n(rest, job.in - k, to + k);
    }
    scale[r] = unit * 256.0f;  // decode_e4m3 gives values 2^8 smaller
  }
  job.x = rounded.data();
  job.row_scale = scale.data();
  run<E4M3Weights>(job);
}

void run_bf16(Job job) {
  std::vector<float> padded;
  if (job.in % 2) {  // pairs of inputs: an odd row gets a zero behind it
    padded.assign(job.rows * (job.in + 1), 0);
    for (int64_t r = 0; r < job.rows; ++r)
      std::copy_n(job.x + r * job.in, job.in, padded.data() + r * (job.in + 1));
    job.x = padded.data();
    job.x_stride = job.in + 1;
  }
  run<BF16Weights>(job);
}

}  // namespace

int64_t packed_bytes(Format format, int64_t out, int64_t in) {
  return divide_up(out, kLanes) * panel_bytes(format, in);
}

void pack_weight(Format format, const void* weight, void* packed, int64_t out, int64_t in) {
  switch (format) {
    case Format::kF32:
      return pack(static_cast<const float*>(weight), static_cast<float*>(packed), out, in, 1);
    case Format::kBF16:
      return pack(static_cast<const uint16_t*>(weight), static_cast<uint16_t*>(packed), out, in, 2);
    case Format::kInt8:
      return pack_int8(static_cast<const int8_t*>(weight), static_cast<char*>(packed), out, in);
    case Format::kE4M3:
      return pack(static_cast<const int8_t*>(weight), static_cast<int8_t*>(packed), out, in, 1);
  }
}

void linear(Format format, const float* x, const void* packed, const float* scale,
            const float* bias, float* y, int64_t rows, int64_t in, int64_t out) {
  const Job job{
      x,     in,      in,   out, rows, static_cast<const char*>(packed), panel_bytes(format, in),
      scale, nullptr, bias, y};
  switch (format) {
    case Format::kF32:
      return run<F32Weights>(job);
    case Format::kBF16:
      return run_bf16(job);
    case Format::kInt8:
      return run_int8(job);
    case Format::kE4M3:
      return run_e4m3(job);
  }
}

}  // namespace qinfer
