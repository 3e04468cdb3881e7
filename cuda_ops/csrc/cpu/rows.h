// Operators on rows: gathers, root-mean-square norms, the gated activation, the largest entry.
#pragma once

#include "team.h"

namespace qinfer {

enum class Float : int { kF32, kF16, kBF16 };

// y[t] = table[ids[t]] as float; table [*, width], y [rows, width].
Task gather_rows(Float type, const void* table, const int64_t* ids, float* y, int64_t rows,
                 int64_t width);

// total = x + residual, y = total / sqrt(mean(total^2) + eps) * weight, row by row. residual and
// total may be null: the norm of x then. All [rows, width], weight [width].
Task rms_norm(const float* x, const float* residual, const float* weight, float eps, float* y,
              float* total, int64_t rows, int64_t width);

// x [rows, 2 width] = [gate | up]: y = silu(gate) * up, [rows, width].
Task silu_gate(const float* x, float* y, int64_t rows, int64_t width);

// The first index of each row's largest entry; x [rows, width].
Task argmax(const float* x, int64_t* index, int64_t rows, int64_t width);

}  // namespace qinfer
