// The token at a given place of the order "largest first, then smallest index", by the count or by
// the probability before it: found digit by digit in the logits' bits, nothing is sorted.
#pragma once
#include "ranks.cuh"

namespace qinfer::cuda {

constexpr int kBins = 1 << 11;             // a key is looked at in digits of 11, 11 and 10 bits
constexpr float kUnit = 1099511627776.0f;  // 2^40: a probability's fixed point

// Tokens in order: those with a larger key, and of those with `key` the first `ties`.
struct Cut {
  uint32_t key;
  unsigned ties;
};

struct Row {
  const float* logits;
  int width;
  float inverse_temperature, top;  // the largest logit
  const int* index = nullptr;      // the logits' tokens, where some are left out

  // A token's share, relative to the best's, in units of 2^-40.
  __device__ __forceinline__ unsigned long long mass(float logit) const {
    return static_cast<unsigned long long>(expf((logit - top) * inverse_temperature) * kUnit);
  }
};

struct Bins {
  unsigned count[kBins];
  unsigned long long mass[kBins];
  unsigned digit;
  unsigned long long rest;
};

// Bins from the top bin down: the first at which the running total exceeds `target`, and how far
// into it; the lowest filled one where rounding leaves the target unreached. For one warp.
__device__ __forceinline__ void pick(Bins& bins, int top, unsigned long long target,
                                     bool counting) {
  const int each = (top + 1) / 32, first = top - int(threadIdx.x) * each;
  const auto of = [&](int digit) -> unsigned long long {
    return counting ? bins.count[digit] : bins.mass[digit];
  };
  unsigned long long own = 0;
  for (int i = 0; i < each; ++i) own += of(first - i);
  unsigned long long until = own;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const unsigned long long other = __shfl_up_sync(0xffffffffu, until, d);
    if (int(threadIdx.x) >= d) until += other;
  }
  const unsigned all = __ballot_sync(0xffffffffu, until > target);
  const unsigned filled = __ballot_sync(0xffffffffu, own > 0);
  const int lane = all ? __ffs(all) - 1 : 31 - __clz(filled | 1u);
  if (int(threadIdx.x) != lane) return;
  unsigned long long before = until - own;
  int last = first;
  for (int i = 0; i < each; ++i) {
    const unsigned long long here = of(first - i);
    if (here) last = first - i;
    if (all && before + here > target) break;
    before += here;
  }
  bins.digit = last, bins.rest = all ? target - before : 0;
}

// The first token of the order at which what has been added up exceeds `target`: the mass, or the
// count if `counting`. Everything up to it is the Cut. Ties have equal masses, so the number of
// them follows by division. Keys below `least` are known to come after it.
__device__ inline Cut find(const Row& row, Bins& bins, unsigned long long target, bool counting,
                           uint32_t least = 0) {
  uint32_t prefix = 0;
  int shift = 32;
  for (int pass = 0; pass < 3; ++pass) {
    const int bits = pass < 2 ? 11 : 10, above = shift;
    shift -= bits;
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins.count[i] = 0, bins.mass[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < row.width; i += kThreads) {
      const float logit = row.logits[i];
      const uint32_t key = key_of(logit);
      if (key < least || (pass && (key >> above) != prefix)) continue;
      const uint32_t digit = (key >> shift) & ((1u << bits) - 1);
      if (counting) {
        atomicAdd(&bins.count[digit], 1u);
      } else if (const unsigned long long mass = row.mass(logit)) {
        atomicAdd(&bins.mass[digit], mass);
      }
    }
    __syncthreads();
    if (threadIdx.x < 32) pick(bins, (1 << bits) - 1, target, counting);
    __syncthreads();
    prefix = (prefix << bits) | bins.digit;
    target = bins.rest;
    __syncthreads();
  }
  if (counting) return {prefix, unsigned(target) + 1};
  const unsigned long long each = row.mass(number_of(prefix));
  return {prefix, each ? unsigned(target / each) + 1 : 1u};
}

// The mass of the tokens up to a cut.
__device__ inline unsigned long long mass_until(const Row& row, Cut cut) {
  unsigned long long sum = 0;
  for (int i = threadIdx.x; i < row.width; i += kThreads)
    if (key_of(row.logits[i]) > cut.key) sum += row.mass(row.logits[i]);
  return block_sum(sum) + cut.ties * row.mass(number_of(cut.key));
}

}  // namespace qinfer::cuda
