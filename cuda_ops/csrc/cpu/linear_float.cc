// Products that add in float: float and bfloat16 weights, and e4m3 weights and activations.
#include <algorithm>
#include <vector>

#include "panels.h"
#include "parallel.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace qinfer {
namespace {

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

// Split the panels among the threads; many rows pass over a few panels at a time, which stay in the
// cache meanwhile.
template <typename W>
void run(const Job& job) {
  share_evenly(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    if (job.rows < kManyRows) return run_rows<W>(job, first, end);
    for (int64_t p = first; p < end; p += kGroup) run_rows<W>(job, p, std::min(p + kGroup, end));
  });
}

constexpr int64_t kDecodeRows = 32;  // from here on decoding e4m3 weights to float once pays

// The same with a few panels at a time made float, which the float kernel then adds in the same
// order.
void run_decoded(const Job& job) {
  share_evenly(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    std::vector<float> scratch(kGroup * job.in * kLanes);
    Job part = job;
    part.panel = job.in * kLanes * sizeof(float);
    for (int64_t p = first; p < end; p += kGroup) {
      const int64_t stop = std::min(p + kGroup, end);
      const char* from = job.w + p * job.panel;
      for (int64_t i = 0; i < (stop - p) * job.in; ++i)
        store(&scratch[i * kLanes], decode_e4m3(from + i * kLanes));
      part.w = reinterpret_cast<const char*>(scratch.data()) - p * part.panel;
      run_rows<F32Weights>(part, p, stop);
    }
  });
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

}  // namespace

int64_t float_panel_bytes(int64_t in) { return in * kLanes * sizeof(float); }
int64_t bf16_panel_bytes(int64_t in) { return divide_up(in, 2) * 64; }
int64_t e4m3_panel_bytes(int64_t in) { return in * kLanes; }

void run_f32(const Job& job) { run<F32Weights>(job); }

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
  job.rows < kDecodeRows ? run<E4M3Weights>(job) : run_decoded(job);
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

}  // namespace qinfer
