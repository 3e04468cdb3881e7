// What both kernels of grouped products share: which rows a tile has, and where its scales are.
#pragma once
#include "grouped.h"
#include "weights.cuh"

namespace qinfer::cuda {

__device__ __forceinline__ Tile tile_of(const Grouped& p, int index, int rows) {
  if (p.tiles) return p.tiles[index];
  if (p.experts) return {p.experts[index], index, 1};
  const int first = index * rows;
  return {0, first, min(rows, static_cast<int>(p.pairs) - first)};
}

// The pair in a tile's row, negative where it has none.
__device__ __forceinline__ int pair_of(const Grouped& p, const Tile& tile, int row) {
  if (row >= tile.count) return -1;
  return p.order ? p.order[tile.first + row] : tile.first + row;
}

template <class T>
__device__ __forceinline__ const T* inputs_of(const Grouped& p, int pair) {
  return pair < 0 ? nullptr : static_cast<const T*>(p.x) + pair / p.repeats * p.in;
}

template <Format F>
__host__ __device__ __forceinline__ int64_t row_bytes(int64_t in) {
  return F == Format::kPlain ? in * 2 : F == Format::kInt4 ? (in + 127) / 128 * 64 : in;
}

// Where the scales of a channel's groups of inputs begin.
__device__ __forceinline__ const float* scales_of(const Grouped& p, int expert, int64_t channel) {
  const int64_t groups = (p.in + p.group - 1) / p.group;
  const int64_t rows = (p.out + p.channels - 1) / p.channels;
  return p.scale + (expert * rows + channel / p.channels) * groups;
}

// A sum as it is stored, in float32 until then.
template <class T>
__device__ __forceinline__ float finished(const Grouped& p, int expert, int64_t channel, int pair,
                                          float sum) {
  if (p.x_scale) sum *= p.x_scale[pair / p.repeats];
  if (p.scale && !p.group) sum *= p.scale[expert * p.out + channel];
  if (p.bias) sum += number(static_cast<const T*>(p.bias)[channel]);
  return sum;
}

}  // namespace qinfer::cuda
