// Matrix products y = x W + b over weights packed in panels of as many outputs as a register has
// lanes: 4, 8 or 16.
#pragma once

#include "simd.h"
#include "team.h"

namespace qinfer {

enum class Format : int { kF32 = 0, kBF16 = 1, kInt8 = 2, kE4M3 = 3, kInt4 = 4 };

constexpr int64_t kPanelOutputs = kLanes;

// Bytes of a packed weight [out, in] of that format.
int64_t packed_bytes(Format format, int64_t out, int64_t in);

// Pack a row-major weight [out, in] (float, bfloat16 bits, int8, e4m3 bits; int4 as int8 values
// from -8 to 7, with `in` a multiple of 64).
void pack_weight(Format format, const void* weight, void* packed, int64_t out, int64_t in);

// Scales [out, groups] of groups of inputs in panel order: [panels, groups, outputs of a panel],
// and how many numbers that is.
int64_t packed_scales(int64_t out, int64_t groups);
void pack_scales(const float* scale, float* packed, int64_t out, int64_t groups);

// x [rows, in] float, y [rows, out] float; bias [out] or null. scale: [out] for int8 and e4m3, for
// int4 packed ones of equal groups of inputs, 64 or a multiple; `scales`: how many. x is rounded to
// 16 bits (int8) or e4m3 of its row's largest magnitude, or to at least 15 bits of the largest in
// each 64 inputs (int4). A result's bits depend on its row of x alone: not on `rows`, nor on the
// number of threads.
Task linear(Format format, const float* x, const void* packed, const float* scale,
            const float* bias, float* y, int64_t rows, int64_t in, int64_t out, int64_t scales);

// The same with a weight packed as int8, for x rounded to int8 too: by `input_scale`, or where that
// is null by each row's largest magnitude / 127.
Task linear_a8w8(const float* x, const void* packed, const float* scale, const float* input_scale,
                 const float* bias, float* y, int64_t rows, int64_t in, int64_t out);

// Weights packed as e4m3, x rounded by `input_scale` [1].
Task linear_e4m3(const float* x, const void* packed, const float* scale, const float* input_scale,
                 const float* bias, float* y, int64_t rows, int64_t in, int64_t out);

// Weights packed as e4m3 with scales [ceil(out / block), ceil(in / block)]; x rounded to e4m3 of
// the largest magnitude in each `block` inputs. `block`: a multiple of 4.
Task linear_e4m3_blocks(const float* x, const void* packed, const float* scale, int64_t block,
                        const float* bias, float* y, int64_t rows, int64_t in, int64_t out);

// Integer weights in `groups` equal groups of inputs: values of 4 bits, -8 to 7, or 8. Their scales
// are packed ones. x is rounded to 16 bits of the largest magnitude in each group.
int64_t packed_group_bytes(int bits, int64_t out, int64_t in, int64_t groups);
void pack_groups(int bits, const int8_t* weight, char* packed, int64_t out, int64_t in,
                 int64_t groups);
Task linear_groups(int bits, const float* x, const void* packed, const float* scale,
                   const float* bias, float* y, int64_t rows, int64_t in, int64_t out,
                   int64_t groups);

}  // namespace qinfer
