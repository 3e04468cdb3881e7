// What changes activations before a product or its result after, and weights in groups of any size.
#pragma once
#include "kernels.h"

namespace qinfer::cuda {

// w[out, in] in `type`: integers times the scale [out, in / group] of their group, any size.
void dequantise_groups(Type type, const int8_t* weight, const float* scale, void* w, int64_t out,
                       int64_t in, int64_t group, cudaStream_t stream);

// y = (x + shift) * scale over rows of `width`; either may be null.
void scale_shift(Type type, const void* x, const float* scale, const float* shift, void* y,
                 int64_t rows, int64_t width, cudaStream_t stream);
// y[:, i] = x[:, columns[i]] of 16-bit numbers.
void take_columns(const void* x, const int64_t* columns, void* y, int64_t rows, int64_t from,
                  int64_t to, cudaStream_t stream);

// total = y + s zero, where s [rows, groups] are x's sums over each group of inputs.
struct ZeroPoints {
  const void* y;      // [rows, out]
  const void* x;      // [rows, in]
  const float* zero;  // [groups, out]
  void* total;
  int64_t rows, in, out, groups;
};
void add_zero_points(Type type, const ZeroPoints& z, cudaStream_t stream);

}  // namespace qinfer::cuda
