// Products that add in float: float and bfloat16 weights, and e4m3 weights and activations.
#include <algorithm>
#include <vector>

#include "panels.h"

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
void run(const Job& job, const Worker& me) {
  me.share(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    if (job.rows < kManyRows) return run_rows<W>(job, first, end);
    for (int64_t p = first; p < end; p += kGroup) run_rows<W>(job, p, std::min(p + kGroup, end));
  });
}

constexpr int64_t kDecodeRows = 32;  // from here on decoding e4m3 weights to float once pays

// The same with a few panels at a time made float, which the float kernel then adds in the same
// order.
void run_decoded(const Job& job, const Worker& me) {
  me.share(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    std::vector<float> decoded(kGroup * job.in * kLanes);
    Job part = job;
    part.panel = job.in * kLanes * sizeof(float);
    for (int64_t p = first; p < end; p += kGroup) {
      const int64_t stop = std::min(p + kGroup, end);
      const char* from = job.w + p * job.panel;
      for (int64_t i = 0; i < (stop - p) * job.in; ++i)
        store(&decoded[i * kLanes], decode_e4m3(from + i * kLanes));
      part.w = reinterpret_cast<const char*>(decoded.data()) - p * part.panel;
      run_rows<F32Weights>(part, p, stop);
    }
  });
}

// ---- e4m3 activations -------------------------------------------------------------------------

constexpr float kDecodedUnit = 256.0f;  // decode_e4m3 gives values 2^8 smaller

// Round a row to e4m3 values of the unit that is returned.
float round_row(const float* x, float* to, int64_t in) {
  const float unit = std::max(largest_magnitude(x, in) / kE4M3Max, 1e-30f);
  int64_t k = 0;
  for (; k + kLanes <= in; k += kLanes) store(to + k, round_e4m3(load<F32>(x + k) / unit));
  if (k < in) {
    float rest[kLanes] = {};
    std::copy_n(x + k, in - k, rest);
    store(rest, round_e4m3(load<F32>(rest) / unit));
    std::copy_n(rest, in - k, to + k);
  }
  return unit;
}

}  // namespace

int64_t float_panel_bytes(int64_t in) { return in * kLanes * sizeof(float); }
int64_t bf16_panel_bytes(int64_t in) { return divide_up(in, 2) * 64; }
int64_t e4m3_panel_bytes(int64_t in) { return in * kLanes; }

Task f32_product(const Job& job) {
  return [job](const Worker& me) { run<F32Weights>(job, me); };
}

Task e4m3_product(const Job& job) {
  auto rounded = scratch<float>(job.rows * job.in), unit = scratch<float>(job.rows);
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        const int64_t at = r * job.in;
        unit[r] = round_row(job.x + at, rounded.get() + at, job.in) * kDecodedUnit;
      }
    });
    me.wait();
    Job product = job;
    product.x = rounded.get();
    product.row_scale = unit.get();
    job.rows < kDecodeRows ? run<E4M3Weights>(product, me) : run_decoded(product, me);
  };
}

// Pairs of inputs: with an odd number every row gets a zero behind it.
Task bf16_product(const Job& job) {
  if (job.in % 2 == 0) return [job](const Worker& me) { run<BF16Weights>(job, me); };
  auto padded = scratch<float>(job.rows * (job.in + 1));
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        float* to = padded.get() + r * (job.in + 1);
        *std::copy_n(job.x + r * job.in, job.in, to) = 0;
      }
    });
    me.wait();
    Job product = job;
    product.x = padded.get();
    product.x_stride = job.in + 1;
    run<BF16Weights>(product, me);
  };
}

}  // namespace qinfer
