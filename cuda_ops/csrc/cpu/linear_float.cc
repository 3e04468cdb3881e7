// Products with float and bfloat16 weights.
#include "float_tiles.h"

namespace qinfer {
namespace {

struct BF16Weights {
  using X = float;
  static constexpr int kStep = 2, kTile = 24, kBytes = 64;
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

// The product of a copy of x: its rows in order, with zeros behind each up to `stride`.
template <typename W>
Task copied_product(const Job& job, int64_t stride) {
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
      run<W>(part, me);
    });
  };
}

}  // namespace

int64_t float_panel_bytes(int64_t in) { return in * kLanes * sizeof(float); }
int64_t bf16_panel_bytes(int64_t in) { return divide_up(in, 2) * 64; }

Task f32_product(const Job& job) {
  if (job.order) return copied_product<F32Weights>(job, job.in);
  return [job](const Worker& me) { run<F32Weights>(job, me); };
}

// Pairs of inputs: with an odd number every row gets a zero behind it.
Task bf16_product(const Job& job) {
  if (job.order || job.in % 2) return copied_product<BF16Weights>(job, divide_up(job.in, 2) * 2);
  return [job](const Worker& me) { run<BF16Weights>(job, me); };
}

}  // namespace qinfer
