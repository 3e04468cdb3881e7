// Products with float and bfloat16 weights.
#include "float_tiles.h"

namespace qinfer {
namespace {

struct BF16Weights {
  using X = float;
  static constexpr int kStep = 2, kTile = kMostSums, kBytes = 4 * kLanes;
  template <int R, int P>
  static void step(F32 (&acc)[R][P], const float* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
    F32 v[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) v[p] = (F32)(load<U32>(w[p] + s * kBytes) << 16);
    add_products(acc, v, x, 2 * s);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) v[p] = (F32)(load<U32>(w[p] + s * kBytes) & 0xFFFF0000u);
    add_products(acc, v, x, 2 * s + 1);
  }

  static void decode(const char* from, float* to, int64_t steps) {
    for (int64_t s = 0; s < steps; ++s) {
      const U32 pair = load<U32>(from + s * kBytes);
      store(to + 2 * s * kLanes, pair << 16);
      store(to + (2 * s + 1) * kLanes, pair & 0xFFFF0000u);
    }
  }
};

// From here on making bfloat16 float once pays; with the registers of AVX-512 never.
constexpr int64_t kDecodeRows = kRegisters == 32 ? INT64_MAX : 16;

void product(const Job& job, const Worker& me) {
  job.rows < kDecodeRows ? run<BF16Weights>(job, me) : run_decoded<BF16Weights>(job, me);
}

// The product of a copy of x: its rows in order, with zeros behind each up to `stride`.
template <typename Run>
Task copied_product(const Job& job, int64_t stride, Run multiply) {
  auto copy = scratch<float>(job.rows * stride);
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        float* to = std::copy_n(job.row(r), job.in, copy.get() + r * stride);
        std::fill_n(to, stride - job.in, 0.0f);
      }
    });
    me.wait();
    each_weight(job, [&](Job part, int64_t first) {
      part.x = copy.get() + first * stride;
      part.x_stride = stride;
      multiply(part, me);
    });
  };
}

}  // namespace

int64_t float_panel_bytes(int64_t in) { return in * kLanes * sizeof(float); }
int64_t bf16_panel_bytes(int64_t in) { return divide_up(in, 2) * 4 * kLanes; }

Task f32_product(const Job& job) {
  if (job.order) return copied_product(job, job.in, run<F32Weights>);
  return [job](const Worker& me) { run<F32Weights>(job, me); };
}

// Pairs of inputs: with an odd number every row gets a zero behind it.
Task bf16_product(const Job& job) {
  if (job.order || job.in % 2) return copied_product(job, divide_up(job.in, 2) * 2, product);
  return [job](const Worker& me) { product(job, me); };
}

}  // namespace qinfer
