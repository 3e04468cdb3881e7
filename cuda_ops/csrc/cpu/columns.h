// What changes x before a product, or adds to its result, column by column. All matrices are of
// rows.
#pragma once

#include <vector>

#include "team.h"

namespace qinfer {

// y = (x + shift) * scale; either [width], or null.
Task scale_shift(const float* x, const float* scale, const float* shift, float* y, int64_t rows,
                 int64_t width);

// y[r, i] = x[r, columns[i]]; x [rows, from], y [rows, width].
Task take_columns(const float* x, const int64_t* columns, float* y, int64_t rows, int64_t from,
                  int64_t width);

// y [rows, sum of widths]: the parts side by side.
Task join_columns(const std::vector<const float*>& parts, const std::vector<int64_t>& widths,
                  float* y, int64_t rows);

// result = y + s zero: s [rows, groups], the sums of x [rows, in] over each of its equal groups,
// and zero [groups, out]. A result's bits depend on its row alone.
Task add_zero_points(const float* y, const float* x, const float* zero, float* result, int64_t rows,
                     int64_t in, int64_t out, int64_t groups);

}  // namespace qinfer
