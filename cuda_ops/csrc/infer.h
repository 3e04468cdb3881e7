// What static programs are told of an operator's results before anything runs: shapes and types,
// for the bindings of the CPU and of CUDA. A size of -1 is known only when the program runs.
#pragma once

#include "paddle/extension.h"

namespace qinfer::infer {

using Shape = std::vector<int64_t>;
using Shapes = std::vector<Shape>;
using Types = std::vector<paddle::DataType>;
using OptionalShape = paddle::optional<Shape>;

inline int64_t times(int64_t size, int64_t factor) { return size < 0 ? -1 : size * factor; }

inline Shapes linear(const Shape& x, int64_t, int64_t out) { return {{x[0], out}}; }

// The outputs are as many as the scales.
inline Shapes scaled_linear(const Shape& x, const Shape&, const Shape& scale) {
  return {{x[0], scale[0]}};
}

// The outputs are the first size of the packed weight.
inline Shapes packed_linear(const Shape& x, const Shape& packed) { return {{x[0], packed[0]}}; }

inline Shapes expert_linear_a8w8(const Shape&, const Shape&, const Shape&, const Shape& experts,
                                 const OptionalShape&, int64_t out) {
  return {{times(experts[0], experts[1]), out}};
}

inline Shapes alike(const Shape& x) { return {x}; }

inline Shapes columns(const Shape& x, const Shape& columns) { return {{x[0], columns[0]}}; }

inline Shapes joined(const Shapes& parts) {
  int64_t width = 0;
  for (const Shape& part : parts) width += part[1];
  return {{parts.at(0)[0], width}};
}

inline Shapes expert_linear(const Shape&, const Shape&, const OptionalShape&, const Shape& experts,
                            int64_t, int64_t out) {
  return {{times(experts[0], experts[1]), out}};
}

inline Shapes expert_blocks(const Shape&, const Shape&, const Shape&, const Shape& experts, int64_t,
                            int64_t out) {
  return {{times(experts[0], experts[1]), out}};
}

inline Shapes queries(const Shape& qkv, const Shape&, const Shape&, const Shape&,
                      const Shape& keys) {
  const int64_t kv_heads = keys[2], dim = keys[3];
  return {{qkv[0], qkv[1] / dim - 2 * kv_heads, dim}};
}

// Straight from the QKV product.
inline Shapes attended(const Shape& qkv, const Shape&, const Shape&, const Shape&,
                       const Shape& keys) {
  return {{qkv[0], qkv[1] - 2 * keys[2] * keys[3]}};
}

inline Shapes attention(const Shape& queries) { return {{queries[0], queries[1] * queries[2]}}; }

inline Shapes half_the_width(const Shape& x) { return {{x[0], x[1] / 2}}; }

inline Shapes two_alike(const Shape& x) { return {x, x}; }

inline Shapes gathered(const Shape& table, const Shape& rows) { return {{rows[0], table[1]}}; }

inline Shapes one_a_row(const Shape& x) { return {{x[0]}}; }

inline Shapes routes(const Shape& logits, int64_t top_k, bool) {
  return {{logits[0], top_k}, {logits[0], top_k}};
}

inline Shapes mixed(const Shape& routed, const Shape& weights) { return {{weights[0], routed[1]}}; }

inline Shapes norm_linear(const Shape& x, const OptionalShape&, const Shape&, const Shape&,
                          const OptionalShape&, const OptionalShape&, float, int64_t, int64_t out,
                          bool gated) {
  return {{x[0], gated ? out / 2 : out}, x};
}

inline Shapes gated_mlp(const Shape& x, const OptionalShape&, const Shape&, const Shape&,
                        const OptionalShape&, const OptionalShape&, const Shape&,
                        const OptionalShape&, const OptionalShape&, float, int64_t, int64_t,
                        int64_t, int64_t down_out) {
  return {{x[0], down_out}, x};
}

// Of experts where they are given, else of one weight.
inline Shapes grouped(const Shape& x, const Shape&, const OptionalShape&, const OptionalShape&,
                      const OptionalShape& experts, const OptionalShape&, int64_t, int64_t out) {
  return {{experts ? times((*experts)[0], (*experts)[1]) : x[0], out}};
}

// A CPU computes in float32, a card in its inputs' type.

inline Types floats(const paddle::DataType&) { return {paddle::DataType::FLOAT32}; }

inline Types joined_floats(const Types&) { return {paddle::DataType::FLOAT32}; }

inline Types two_floats(const paddle::DataType&) {
  return {paddle::DataType::FLOAT32, paddle::DataType::FLOAT32};
}

inline Types same(const paddle::DataType& x) { return {x}; }

inline Types two_same(const paddle::DataType& x) { return {x, x}; }

inline Types joined_same(const Types& parts) { return {parts.at(0)}; }

inline Types third(const paddle::DataType&, const paddle::DataType&, const paddle::DataType& x) {
  return {x};
}

inline Types indices(const paddle::DataType&) { return {paddle::DataType::INT64}; }

inline Types weights_and_experts(const paddle::DataType&) {
  return {paddle::DataType::FLOAT32, paddle::DataType::INT32};
}

}  // namespace qinfer::infer
