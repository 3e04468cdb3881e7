// Products of rows with different weights: each row (a pair of a token and one of its experts) is
// multiplied with the weight of its group (its expert). Also what all rows share one weight of,
// where its scales are laid out in a way that the kernels of linear.cu do not know.
#pragma once
#include "kernels.h"

namespace qinfer::cuda {

// The best experts of each token: softmax over all, the largest `top_k` (equal ones by number).
struct Routing {
  const void* logits;  // [tokens, count]
  float* weights;      // [tokens, top_k]
  int32_t* experts;
  int64_t tokens, count, top_k;
  bool normalise;
};
constexpr int64_t kMostExperts = 512;
void route(Type type, const Routing& r, cudaStream_t stream);

// y = sum over j of weights[t, j] routed[t, j] + sigmoid(gate[t]) shared[t]; shared may be null.
struct Mixture {
  const void* routed;  // [tokens, top_k, width]
  const float* weights;
  const void* shared;
  const void* gate;  // [tokens]
  void* y;
  int64_t tokens, top_k, width;
};
void mix_experts(Type type, const Mixture& m, cudaStream_t stream);

// Pairs sorted by expert and cut into tiles of up to `rows`, each of one expert.
struct Tile {
  int32_t expert, first, count;  // pairs order[first] to order[first + count - 1]; 0: not used
};
int64_t most_tiles(int64_t pairs, int64_t experts, int64_t rows);
// order: [pairs], tiles: [most_tiles(pairs, count, rows)]
void group_pairs(const int32_t* experts, int64_t pairs, int64_t count, int64_t rows, int32_t* order,
                 Tile* tiles, cudaStream_t stream);

// y[p] = (x[p / repeats] W^T) x_scale[p / repeats] scale + bias, with the W of pair p's expert.
// scale: one for each channel; where `group` is not 0, one for each `group` inputs (a multiple of
// 64) of each `channels` channels. One of: tiles and order; experts [pairs]; neither, which is one
// weight for all.
struct Grouped {
  const void* x;
  const void* weight;    // [experts, out, in], int4 packed by pack_int4
  const float* scale;    // [experts, out] or [experts, out / channels, in / group], rounded up
  const float* x_scale;  // [pairs / repeats] or null
  const void* bias;      // [out] or null; of one weight for all
  void* y;               // [pairs, out]
  const int32_t* experts;
  const int32_t* order;
  const Tile* tiles;
  int64_t num_tiles, pairs, repeats, in, out, group, channels;
};
constexpr int64_t kStreamTile = 8, kMatrixTile = 64;  // rows of a tile, by kernel
void stream_grouped(Type type, Format format, const Grouped& p, cudaStream_t stream);
void multiply_grouped(Type type, Format format, const Grouped& p, cudaStream_t stream);

}  // namespace qinfer::cuda
