// Rotary embedding with the KV write, and causal attention over the paged cache.
#pragma once

#include "cache.h"
#include "team.h"

namespace qinfer {

struct Rotary {
  const float* qkv;          // [tokens, (heads + 2 kv_heads) dim]
  const float* table;        // [positions, 2 dim] = cos, cos, -sin, sin
  const int64_t* positions;  // [tokens]
  const int64_t* slots;      // [tokens]
  float* queries;            // [tokens, heads, dim], written
  int64_t tokens, heads;
  const float *q_norm, *k_norm;  // [dim], or null: weights of a norm of each head before
  const float* query_scale;      // [positions], or null: a factor of the queries
  float eps;
};

// Rotate queries and keys, write keys and values into their slots.
Task rotary_kv_write(const Rotary& rotary, const Cache& cache);

struct Paged {
  const float* queries;                     // [tokens, heads, dim]
  const int32_t* tables;                    // [sequences, width]
  const int32_t *starts, *lengths;          // [sequences + 1], [sequences]
  int64_t sequences, width, heads, window;  // window: last tokens a query sees, 0 for all
  float scale;
  float* out;  // [tokens, heads, dim]
};

// A result's bits depend on its own query and keys alone.
Task paged_attention(const Paged& paged, const Cache& cache);

}  // namespace qinfer
