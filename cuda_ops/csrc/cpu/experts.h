// Mixture of experts: routing, products with the chosen experts' weights, the weighted sum.
//
// Pair (t, j) is the j-th choice of token t, number t * top_k + j.
#pragma once

#include "linear.h"

namespace qinfer {

// Softmax of each row of logits [tokens, count], then its top_k largest, of equal ones the first;
// with `normalise` divided by their sum. weights and experts [tokens, top_k].
Task route(const float* logits, float* weights, int32_t* experts, int64_t tokens, int64_t count,
           int64_t top_k, bool normalise);

// y[i] = x row of pair i times the weight of experts[i], for all pairs. The weights of `count`
// experts lie one behind the other in `packed`, [count * out, in] with `out` a multiple of 16, and
// their scales in `scale`. x has a row for each pair, or one for every pairs / x_rows of them.
// What it costs grows with the experts that are chosen. As with `linear`, a result's bits depend
// on its row of x and its weight alone.
Task expert_linear(Format format, const float* x, const void* packed, const float* scale,
                   const int32_t* experts, float* y, int64_t pairs, int64_t x_rows, int64_t in,
                   int64_t out, int64_t count, int64_t scales);

// The same as `linear_a8w8`, of int8 weights.
Task expert_linear_a8w8(const float* x, const void* packed, const float* scale,
                        const float* input_scale, const int32_t* experts, float* y, int64_t pairs,
                        int64_t x_rows, int64_t in, int64_t out, int64_t count);

// The same as `linear_e4m3_blocks`, of experts whose outputs make whole blocks.
Task expert_linear_e4m3_blocks(const float* x, const void* packed, const float* scale,
                               int64_t block, const int32_t* experts, float* y, int64_t pairs,
                               int64_t x_rows, int64_t in, int64_t out, int64_t count);

// y[t] = sum over j of weights[t, j] routed[t * top_k + j], plus sigmoid(gate[t]) shared[t] where
// these are not null. y and shared [tokens, width].
Task mix_experts(const float* routed, const float* weights, const float* shared, const float* gate,
                 float* y, int64_t tokens, int64_t top_k, int64_t width);

}  // namespace qinfer
