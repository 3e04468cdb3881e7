// Products of many rows by cuBLASLt, where it was there to build with.
#pragma once
#include <functional>

#include "kernels.h"

namespace qinfer::cuda {

bool has_matmul();

// Storage that lives until the kernels queued so far have run.
using Workspace = std::function<void*(size_t bytes)>;

// y[rows, out] = x[rows, in] W^T + bias, all in `type`
void matmul(Type type, const Product& p, const Workspace& workspace, cudaStream_t stream);
// The same of e4m3 numbers, times x_scale[row] and scale[channel]; false where cuBLASLt cannot,
// which _knows tells before x and y are there.
bool matmul_e4m3_knows(Type type, const Product& p);
bool matmul_e4m3(Type type, const Product& p, const Workspace& workspace, cudaStream_t stream);

}  // namespace qinfer::cuda
