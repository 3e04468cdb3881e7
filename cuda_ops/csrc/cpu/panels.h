// What the products of all weight formats share: panels, and writing a result.
//
// A panel holds as many outputs as a register has lanes: for each step along the inputs, the
// weights of every input of that step, side by side. A step is 1 input (float), 2 (bfloat16: the
// pair shares a 32-bit lane), and for int8, int4 and e4m3 what their products want. Every
// accumulator adds its inputs in order, whatever the number of rows, so that a result does not
// depend on what else is in the batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"
#include "team.h"

namespace qinfer {

constexpr int64_t kGroup = 4;      // panels that many rows pass over together, out of the cache
constexpr int64_t kManyRows = 12;  // from here on that pays

// Put a row-major weight [out, in] into panels with `step` inputs a step, zeros where it ends.
template <typename T>
void pack_panels(const T* weight, T* packed, int64_t out, int64_t in, int step) {
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

// Pairs of a token and an expert, sorted by expert, so that those of one are multiplied together.
struct Order {
  const int32_t* experts;             // [pairs], of each pair
  int64_t pairs, count;               // experts there are
  int64_t share;                      // pairs that have a row of x in common
  std::shared_ptr<int64_t[]> pair;    // [pairs], in order
  std::shared_ptr<int64_t[]> starts;  // [count + 1], where each expert's begin in it

  // Fill in `pair` and `starts`, keeping the order of an expert's pairs.
  void sort();
};

struct Job {
  const float* x;
  int64_t x_stride, in, out, rows;
  const char* w;
  int64_t panel;           // bytes of one panel
  const float* scale;      // [out] or null
  const float* row_scale;  // [rows] or null
  const float* bias;       // [out] or null
  float* y;
  const Order* order;  // of experts' pairs, or null: one weight for all rows
  const int64_t* to;   // row -> row of y, or null: the same
  int64_t scales;      // numbers in `scale`, of one weight

  // Groups of inputs with a scale each, of an int4 weight.
  int64_t groups() const { return scales / (divide_up(out, kLanes) * kLanes); }

  // Where row r of x begins; of the r-th pair in order.
  const float* row(int64_t r) const { return x + (order ? order->pair[r] / order->share : r) * in; }
};

// run(part, first) for the rows of each weight: all of them, or those of each expert that has any.
// row_scale is that of rows in order; x is left to `run`, which has them in order somewhere.
template <typename Run>
void each_weight(const Job& job, const Run& run) {
  if (!job.order) return run(job, 0);
  const Order& order = *job.order;
  for (int64_t e = 0; e < order.count; ++e) {
    const int64_t first = order.starts[e], rows = order.starts[e + 1] - first;
    if (rows == 0) continue;
    Job part = job;
    part.rows = rows;
    part.w += e * divide_up(job.out, kLanes) * job.panel;
    if (job.scale) part.scale += e * job.scales;
    if (job.row_scale) part.row_scale += first;
    part.to = order.pair.get() + first;
    run(part, first);
  }
}

// work(first, end) for the panels of few rows. Memory is what takes the time then, and it serves
// one thread faster than another.
template <typename Work>
void share_panels(const Job& job, const Worker& me, const Work& work) {
  constexpr int64_t kPiece = 48 << 10;  // bytes: a few microseconds
  const int64_t panels = divide_up(job.out, kLanes);
  if (job.order) return me.share(panels, work);  // one of several products between two waits
  const int64_t piece =
      std::min(kPiece / std::max<int64_t>(job.panel, 1), panels / (16 * me.count));
  const bool is_few = panels < 32 * me.count;  // for pieces of whole tiles
  me.compete(panels, is_few ? 1 : std::max<int64_t>(piece - piece % 4, 4), work);
}

// The panels of a tile: `first` and every `apart`-th behind it, of those up to `end`.
struct Places {
  int64_t first, apart, end;

  int64_t operator[](int64_t i) const { return first + i * apart; }
};

constexpr int64_t kShortTile = 12 << 10;  // bytes

// tile(places) for as many tiles of P panels as there are from p to `end`; where the rest begins.
// With few rows memory is what takes the time. Tiles that are not short are read a P-th of the
// whole apart: so each of P streams goes on in the next tile, and the processor's prefetching does
// not have to learn it anew. The panels of short ones lie side by side (Ahead).
template <int P, typename Tile>
int64_t each_tile(const Job& job, int64_t p, int64_t end, const Tile& tile) {
  const int64_t tiles = (end - p) / P;
  const bool is_short = P * job.panel <= kShortTile;
  for (int64_t t = 0; t < tiles; ++t)
    tile(is_short ? Places{p + t * P, 1, end} : Places{p + t, tiles, end});
  return p + tiles * P;
}

// With one row memory takes the time, and the processor's prefetching alone does not keep up. So
// while a tile is computed, what comes next in each of its panels is asked for; where they are
// short, in the tile behind. kBytes: of a panel, in a step.
template <int R, int P, int kBytes>
struct Ahead {
  static constexpr int64_t kFar = 384;            // bytes, where panels go on
  static constexpr int64_t kEvery = 64 / kBytes;  // steps that share a line of the cache
  int64_t bytes;

  Ahead(const Job& job, const Places& places) : bytes(kFar) {
    if (P * job.panel <= kShortTile) bytes = places.first + P < places.end ? P * job.panel : 0;
  }

  void ask(const char* const (&panels)[P], int64_t s) const {
    if constexpr (R == 1)
      if (s % kEvery == 0)
        for (int i = 0; i < P; ++i) ask_for(panels[i] + s * kBytes + bytes);
  }
};

// y for the outputs of panel p in `rows` rows: sums[i * stride]. The last panel may have fewer. One
// function for tiles of any size, as a compiler may round another copy of it differently. What is
// missing multiplies by 1 and adds -0, which change nothing, so that no row asks for it.
[[gnu::noinline]] inline void finish(const Job& job, int64_t row, int rows, int64_t p,
                                     const F32* sums, int stride) {
  static constexpr float kOne = 1;
  const int64_t o = p * kLanes, count = job.out - o, out = job.out;
  const F32 scale = job.scale ? load_some(job.scale + o, count) : splat(1);
  const F32 bias = job.bias ? load_some(job.bias + o, count) : splat(-0.0f);
  const float* row_scale = job.row_scale ? job.row_scale + row : &kOne;
  const int64_t step = job.row_scale ? 1 : 0;
  const int64_t* to = job.to ? job.to + row : nullptr;
  float* y = job.y + o;
  for (int r = 0; r < rows; ++r) {
    const F32 v = add_product(bias, sums[r * stride] * row_scale[r * step], scale);
    store_some(y + (to ? to[r] : row + r) * out, v, count);
  }
}

// The products of each format. `job.panel` is set by the caller.
int64_t float_panel_bytes(int64_t in);
int64_t bf16_panel_bytes(int64_t in);
int64_t int8_panel_bytes(int64_t in);
int64_t int4_panel_bytes(int64_t in);
int64_t e4m3_panel_bytes(int64_t in);
void pack_int8(const int8_t* weight, char* packed, int64_t out, int64_t in);
void pack_e4m3(const uint8_t* weight, uint8_t* packed, int64_t out, int64_t in);
void pack_int4(const int8_t* weight, char* packed, int64_t out, int64_t in);
Task f32_product(const Job& job);
Task bf16_product(const Job& job);
Task e4m3_product(const Job& job, const float* input_scale);
Task int8_product(const Job& job);
Task int4_product(const Job& job);
Task a8w8_product(const Job& job, const float* input_scale);

// With a scale for each block of outputs and inputs, [out blocks, in blocks], in `job.scale`.
Task e4m3_block_product(const Job& job, int64_t block);

// The same in groups of any size, int8 or int4, with a scale for each: `job.scale` is [panels,
// groups, lanes].
int64_t group8_panel_bytes(int64_t in, int64_t group);
int64_t group4_panel_bytes(int64_t in, int64_t group);
void pack_group8(const int8_t* weight, char* packed, int64_t out, int64_t in, int64_t group);
void pack_group4(const int8_t* weight, char* packed, int64_t out, int64_t in, int64_t group);
Task group8_product(const Job& job, int64_t group);
Task group4_product(const Job& job, int64_t group);

}  // namespace qinfer
