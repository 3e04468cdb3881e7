// Products that add in float, over tiles of R rows and P panels, in any format W that has
//   X            the type of x's numbers
//   kStep        inputs of a step
//   kTile        sums that the registers hold beside what a step needs
//   step<R, P>   acc[r][p] += x[r]'s inputs of step s times panel p's weights for them
#pragma once

#include <algorithm>
#include <vector>

#include "panels.h"

namespace qinfer {

constexpr int kMostSums = kRegisters == 32 ? 24 : 12;

// acc[r][p] += v[p] * x[r][k]. Row by row, so that few of x's numbers are in registers at a time.
template <int R, int P>
inline void add_products(F32 (&acc)[R][P], const F32 (&v)[P], const float* const (&x)[R],
                         int64_t k) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const F32 one = splat(x[r][k]);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) acc[r][p] = add_product(acc[r][p], v[p], one);
  }
}

struct F32Weights {
  using X = float;
  static constexpr int kStep = 1, kTile = kMostSums, kBytes = 4 * kLanes;
  template <int R, int P>
  static void step(F32 (&acc)[R][P], const float* const (&x)[R], const char* const (&w)[P],
                   int64_t s) {
    F32 v[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) v[p] = load<F32>(w[p] + s * kBytes);
    add_products(acc, v, x, s);
  }
};

// R rows times P panels.
template <typename W, int R, int P>
void run_tile(const Job& job, int64_t row, const Places& places) {
  const auto* x = reinterpret_cast<const typename W::X*>(job.x) + row * job.x_stride;
  const typename W::X* rows[R];
  const char* panels[P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) rows[r] = x + r * job.x_stride;
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) panels[i] = job.w + places[i] * job.panel;
  F32 acc[R][P] = {};
  const int64_t steps = divide_up(job.in, W::kStep);
  const Ahead<R, P, W::kBytes> ahead(job, places);
  for (int64_t s = 0; s < steps; ++s) {
    ahead.ask(panels, s);
    W::template step<R, P>(acc, rows, panels, s);
  }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) finish(job, row, R, places[i], &acc[0][i], P);
}

template <typename W, int R, int P>
int64_t run_tiles(const Job& job, int64_t row, int64_t p, int64_t end) {
  return each_tile<P>(job, p, end,
                      [&](const Places& places) { run_tile<W, R, P>(job, row, places); });
}

template <typename W, int R>
void run_panels(const Job& job, int64_t row, int64_t p, int64_t end) {
  if constexpr (R == 1 && kRegisters == 32)  // one row needs many panels to hide latencies
    p = run_tiles<W, R, 8>(job, row, p, end);
  if constexpr (4 * R <= W::kTile) p = run_tiles<W, R, 4>(job, row, p, end);
  p = run_tiles<W, R, 2>(job, row, p, end);
  run_tiles<W, R, 1>(job, row, p, end);
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
  if (job.rows < kManyRows)
    return share_panels(job, me, [&](int64_t p, int64_t end) { run_rows<W>(job, p, end); });
  me.share(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    for (int64_t p = first; p < end; p += kGroup) run_rows<W>(job, p, std::min(p + kGroup, end));
  });
}

// The same with a few panels at a time made float by W::decode, for many rows, where decoding once
// pays: add_up(part, p, end) then adds these panels in the same order, as F32Weights.
template <typename W, typename AddUp>
void over_decoded(const Job& job, const Worker& me, const AddUp& add_up) {
  me.share(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    const int64_t steps = divide_up(job.in, W::kStep);
    std::vector<float> decoded(kGroup * steps * W::kStep * kLanes);
    Job part = job;
    part.panel = steps * W::kStep * kLanes * sizeof(float);
    for (int64_t p = first; p < end; p += kGroup) {
      const int64_t stop = std::min(p + kGroup, end);
      W::decode(job.w + p * job.panel, decoded.data(), (stop - p) * steps);
      part.w = reinterpret_cast<const char*>(decoded.data()) - p * part.panel;
      add_up(part, p, stop);
    }
  });
}

template <typename W>
void run_decoded(const Job& job, const Worker& me) {
  over_decoded<W>(job, me, run_rows<F32Weights>);
}

}  // namespace qinfer
