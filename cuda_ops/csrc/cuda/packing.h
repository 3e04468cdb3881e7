// Quantising weights on the card while a model is loaded, by the formulas of plugins/quant.
#pragma once
#include "kernels.h"

namespace qinfer::cuda {

enum class Source { kBF16, kF16, kFloat };  // what a checkpoint holds
constexpr int64_t kPackedGroup = 64;        // inputs that share a scale in int4

// codes [out, in]: int8, e4m3 or int4 as int8; scale [out], int4: [out, in / 64].
void quantise_weight(Source source, Format format, const void* weight, void* codes, float* scale,
                     int64_t out, int64_t in, cudaStream_t stream);

}  // namespace qinfer::cuda
