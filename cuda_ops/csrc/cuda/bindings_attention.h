// Attention's bindings, for those that are made of them.
#pragma once
#include "tensors.h"

namespace qinfer::cuda {

using Optional = paddle::optional<Tensor>;

// How a KV cache holds its numbers, beside what was `computed` in another type.
Format held_in(const Tensor& cache, const Tensor& computed);

// Writes keys and values in place; the queries [tokens, heads, dim].
std::vector<Tensor> rotary(const Tensor& qkv, const Tensor& table, const Tensor& positions,
                           const Tensor& slots, Tensor& keys, Tensor& values,
                           const Optional& key_scales, const Optional& value_scales,
                           const Optional& q_norm, const Optional& k_norm,
                           const Optional& query_scale, float eps);

// [tokens, heads * dim]
std::vector<Tensor> attention(const Tensor& queries, const Tensor& keys, const Tensor& values,
                              const Tensor& starts, const Tensor& lengths, const Tensor& tables,
                              const Optional& key_scales, const Optional& value_scales, float scale,
                              int64_t window);

}  // namespace qinfer::cuda
