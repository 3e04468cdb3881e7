// Matrix products y = x W + b over weights packed in panels of sixteen outputs.
#pragma once

#include <cstdint>

namespace qinfer {

enum class Format : int { kF32 = 0, kBF16 = 1, kInt8 = 2, kE4M3 = 3 };

// Bytes of a packed weight [out, in] of that format.
int64_t packed_bytes(Format format, int64_t out, int64_t in);

// Pack a row-major weight [out, in] (float, bfloat16 bits, int8 or e4m3 bits).
void pack_weight(Format format, const void* weight, void* packed, int64_t out, int64_t in);

// x [rows, in] float, y [rows, out] float; scale [out] for int8 and e4m3, bias [out] or null.
// int8 rounds each row of x to sixteen bits, e4m3 to e4m3, by the row's largest magnitude.
// A result's bits depend on its row of x alone: not on `rows`, nor on the number of threads.
void linear(Format format, const float* x, const void* packed, const float* scale,
            const float* bias, float* y, int64_t rows, int64_t in, int64_t out);

}  // namespace qinfer
