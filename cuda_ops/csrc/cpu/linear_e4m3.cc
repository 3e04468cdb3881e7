// Products of e4m3 weights and activations, which add in float.
#include "e4m3_weights.h"

namespace qinfer {
namespace {

void product(const Job& job, const Worker& me) {
  if constexpr (E4M3Weights::kDecodes)
    if (job.rows >= kDecodeRows) return run_decoded<E4M3Weights>(job, me);
  run<E4M3Weights>(job, me);
}

// Tiles of weights in blocks.
template <typename W>
struct BlockTiles {
  template <int R, int P>
  struct Tile {
    static constexpr int kPanels = 4 * R <= W::kTile ? 4 : 2;
    static void run(const Job& job, const Blocks& blocks, int64_t row, const Places& places);
  };
};

// The scales of a panel's outputs in run r of their inputs.
F32 scales_of(const Job& job, const Blocks& blocks, int64_t p, int64_t r) {
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    const int64_t o = std::min(p * kLanes + i, job.out - 1);
    lanes[i] = blocks.scale[o / blocks.size * blocks.runs + r];
  }
  return load<F32>(lanes);
}

template <typename W>
template <int R, int P>
void BlockTiles<W>::Tile<R, P>::run(const Job& job, const Blocks& blocks, int64_t row,
                                    const Places& places) {
  const auto* x = reinterpret_cast<const typename W::X*>(job.x) + row * job.x_stride;
  const typename W::X* rows[R];
  const char* panels[P];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) rows[r] = x + r * job.x_stride;
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) panels[i] = job.w + places[i] * job.panel;
  F32 total[R][P] = {};
  for (int64_t b = 0; b < blocks.runs; ++b) {
    F32 acc[R][P] = {};
    const int64_t end = divide_up(std::min((b + 1) * blocks.size, job.in), W::kStep);
    for (int64_t s = b * blocks.size / W::kStep; s < end; ++s)
      W::template step<R, P>(acc, rows, panels, s);
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const F32 by = scales_of(job, blocks, places[i], b);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        total[r][i] =
            add_product(total[r][i], acc[r][i], by * blocks.units[(row + r) * blocks.runs + b]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) finish(job, row, R, places[i], &total[0][i], P);
}

// The product of rounded rows.
void block_product(const Job& job, const Blocks& blocks, const Worker& me) {
  if constexpr (E4M3Weights::kDecodes)
    if (job.rows >= kDecodeRows)
      return over_decoded<E4M3Weights>(job, me, [&](const Job& some, int64_t p, int64_t end) {
        rows_of<BlockTiles<F32Weights>::Tile, 6>(some, blocks, p, end);
      });
  over_tiles<BlockTiles<E4M3Weights>::Tile, 6>(job, blocks, me);
}

}  // namespace

int64_t e4m3_panel_bytes(int64_t in) { return e4m3_stride(in) * kLanes; }

Task e4m3_product(const Job& job, const float* input_scale) {
  const int64_t stride = e4m3_stride(job.in);
  auto rounded = scratch<E4M3Weights::X>(job.rows * stride);
  auto units = scratch<float>(job.rows);
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        const float unit = input_scale ? *input_scale : e4m3_unit(job.row(r), job.in);
        round_to_e4m3(job.row(r), rounded.get() + r * stride, job.in, stride, unit);
        units[r] = unit * E4M3Weights::kUnit;
      }
    });
    me.wait();
    each_weight(job, [&](Job part, int64_t first) {
      part.x = reinterpret_cast<const float*>(rounded.get() + first * stride);
      part.x_stride = stride;
      part.row_scale = units.get() + first;
      product(part, me);
    });
  };
}

Task e4m3_block_product(const Job& job, int64_t block) {
  const int64_t stride = e4m3_stride(job.in), runs = divide_up(job.in, block);
  auto rounded = scratch<E4M3Weights::X>(job.rows * stride);
  auto units = scratch<float>(job.rows * runs);
  return [=](const Worker& me) {
    me.share(job.rows * runs, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        const int64_t at = i % runs * block, count = std::min(block, job.in - at);
        const float* x = job.row(i / runs) + at;
        const float unit = e4m3_unit(x, count);
        round_to_e4m3(x, rounded.get() + i / runs * stride + at, count,
                      std::min(block, stride - at), unit);
        units[i] = unit * E4M3Weights::kUnit;
      }
    });
    me.wait();
    each_weight(job, [&](Job part, int64_t first) {
      const Blocks blocks{part.scale, units.get() + first * runs, block, runs};
      part.x = reinterpret_cast<const float*>(rounded.get() + first * stride);
      part.x_stride = stride;
      part.scale = nullptr;
      block_product(part, blocks, me);
    });
  };
}

void pack_e4m3(const uint8_t* weight, uint8_t* packed, int64_t out, int64_t in) {
  constexpr int kStep = E4M3Weights::kStep;
  const int64_t steps = divide_up(in, kStep);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p)
    for (int64_t s = 0; s < steps; ++s)
      for (int o = 0; o < kLanes; ++o)
        for (int i = 0; i < kStep; ++i) {
          const int64_t row = p * kLanes + o, k = s * kStep + i;
          packed[(p * steps + s) * kStep * kLanes + E4M3Weights::place(o, i)] =
              row < out && k < in ? weight[row * in + k] : 0;
        }
}

}  // namespace qinfer
