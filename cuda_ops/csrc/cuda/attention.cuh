// What both attention kernels share: which sequence a query belongs to.
#pragma once
#include "common.cuh"

namespace qinfer::cuda {

struct Heads {
  const void *queries, *keys, *values;
  const int32_t *starts, *lengths, *tables;
  void* out;
  float* scratch;
  int tokens, sequences, width, block_size, heads, kv_heads, parts;
  float scale;  // of the scores, in units of log 2
  int window;   // the last tokens that are seen; 0: all
  const float *key_scales, *value_scales;
  bool is_static;
};

// The last s with first(s) <= at; first(0) is 0.
template <class First>
__device__ __forceinline__ int search(int sequences, int at, First first) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (first(middle) <= at)
      low = middle;
    else
      high = middle;
  }
  return low;
}

Heads heads_of(const Paged& p, int parts);
bool prefill_knows(int64_t dim);
void prefill(Type type, const Paged& p, cudaStream_t stream);
// The same by Hopper's matrix units, where the shapes suit them.
bool prefill_hopper_knows(const Paged& p);
void prefill_hopper(Type type, const Paged& p, cudaStream_t stream);

}  // namespace qinfer::cuda
