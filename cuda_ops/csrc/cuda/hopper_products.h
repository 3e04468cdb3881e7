// Products that use what only Hopper has.
#pragma once
#include "kernels.h"

namespace qinfer::cuda {

// product() of up to 256 rows, of kPlain up to 16; kE4M3 has inputs of e4m3 as well. Whether it is
// the fastest for these sizes, and computes it.
constexpr int64_t kFewHopperRows = 16, kMostRows = 256;
bool rows_hopper_suits(Format format, int64_t rows, int64_t in, int64_t out);
void rows_hopper(Type type, Format format, const Product& p, cudaStream_t stream);

// Whether matmul_hopper is the fastest for these sizes: most of its tiles are full, and all
// multiprocessors have some to the end.
bool matmul_hopper_suits(int64_t rows, int64_t in, int64_t out, bool gated);

// y = x W^T as in Product, weights and activations both in `type` or both e4m3. Gated: the
// weight's first half of rows are gates, and y[rows, out / 2] = silu(gate) * up.
void matmul_hopper(Type type, bool is_e4m3, bool gated, const Product& p, cudaStream_t stream);

}  // namespace qinfer::cuda
