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

}  // namespace

int64_t float_panel_bytes(int64_t in) { return in * kLanes * sizeof(float); }
int64_t bf16_panel_bytes(int64_t in) { return divide_up(in, 2) * 64; }

Task f32_product(const Job& job) {
  return [job](const Worker& me) { run<F32Weights>(job, me); };
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
