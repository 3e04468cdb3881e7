// Rotary embedding with the KV write, and causal attention over the paged cache, in float.
#pragma once

#include <cstdint>

namespace qinfer {

// qkv [tokens, (heads + 2 kv_heads) dim]; rotary [positions, 2 dim] = cos, cos, -sin, sin;
// values are written as [slots, kv_heads, dim] at slots[t], keys in groups of sixteen slots as
// [slots / 16, kv_heads, dim, 16], so that sixteen scores are computed side by side.
// queries [tokens, heads, dim].
void rotary_kv_write(const float* qkv, const float* rotary, const int64_t* positions,
                     const int64_t* slots, float* key_cache, float* value_cache, float* queries,
                     int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim);

struct Paged {
  const float *keys, *values;       // as rotary_kv_write leaves them, block_size % 16 == 0
  const int32_t* tables;            // [sequences, width]
  const int32_t *starts, *lengths;  // [sequences + 1], [sequences]
  int64_t sequences, width, block_size, heads, kv_heads, dim;
};

// queries and out [tokens, heads, dim]. A result's bits depend on its own query and keys alone.
void paged_attention(const Paged& paged, const float* queries, float scale, float* out);

// x [rows, 2 width] = [gate | up]: y = silu(gate) * up, [rows, width].
void silu_gate(const float* x, float* y, int64_t rows, int64_t width);

}  // namespace qinfer
