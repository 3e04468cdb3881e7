// Rounding activations to eight bits.
#pragma once
#include "kernels.h"

namespace qinfer::cuda {

enum class Code { kInt8, kE4M3 };

// x over its scale, rounded: the row's largest magnitude / 127 or 448, or `fixed` where that is
// given. As bytes, or as numbers of x's type; where `run` is not 0, each run of so many inputs has
// a scale of its own, which the numbers are multiplied with again. Gated: x's rows are gates and
// what they let pass, and silu(gate) * up is rounded.
struct Rounding {
  const void* x;       // [rows, width], gated [rows, 2 width]
  void* rounded;       // [rows, width]
  float* scale;        // [rows], written also where it is fixed; null for runs
  const float* fixed;  // [1] or null
  int64_t rows, width, run;
  bool as_bytes, gated;  // runs: neither; int8: neither, nor runs
};
void round_inputs(Type type, Code code, const Rounding& r, cudaStream_t stream);

}  // namespace qinfer::cuda
