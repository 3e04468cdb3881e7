// Choosing tokens on the card. Sampling sorts nothing: the token at a given place of the order
// "largest first, then smallest index" is found digit by digit in the logits' bits, with integer
// masses, so that the same numbers give the same token always.
#include "ranks.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kBins = 1 << 11;             // a key is looked at in digits of 11, 11 and 10 bits
constexpr float kUnit = 1099511627776.0f;  // 2^40: a probability's fixed point

__device__ __forceinline__ unsigned long long row_best(const float* row, int width) {
  unsigned long long best = 0;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const unsigned long long rank = rank_of(row[i], i);
    best = rank > best ? rank : best;
  }
  return block_best(best);
}

// Tokens in order: those with a larger key, and of those with `key` the first `ties`.
struct Cut {
  uint32_t key;
  unsigned ties;
};

struct Row {
  const float* logits;
  int width;
  float inverse_temperature, top;  // the largest logit

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

// The first token of the order, none after `limit`, at which what has been added up exceeds
// `target`: the mass, or the count if `counting`. Everything up to it is the Cut. Ties have equal
// masses, so the number of them follows by division.
__device__ Cut find(const Row& row, Bins& bins, unsigned long long target, bool counting) {
  uint32_t prefix = 0;
  int shift = 32;
  for (int pass = 0; pass < 3; ++pass) {
    const int bits = pass < 2 ? 11 : 10, above = shift;
    shift -= bits;
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins.count[i] = 0, bins.mass[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.width; i += kThreads) {
      const float logit = row.logits[i];
      const uint32_t key = key_of(logit);
      if (pass && (key >> above) != prefix) continue;
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
  const uint32_t bits = prefix & 0x80000000u ? prefix ^ 0x80000000u : ~prefix;
  const unsigned long long each = row.mass(__uint_as_float(bits));
  return {prefix, each ? unsigned(target / each) + 1 : 1u};
}

__device__ __forceinline__ unsigned long long block_sum(unsigned long long x) {
  __shared__ unsigned long long found[kWarps];
#pragma unroll
  for (int d = 16; d; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int i = 0; i < kWarps; ++i) x += found[i];
  __syncthreads();
  return x;
}

// The mass of the tokens up to a cut.
__device__ unsigned long long mass_until(const Row& row, Cut cut) {
  unsigned long long sum = 0;
  for (int i = threadIdx.x; i < row.width; i += kThreads)
    if (key_of(row.logits[i]) > cut.key) sum += row.mass(row.logits[i]);
  const uint32_t bits = cut.key & 0x80000000u ? cut.key ^ 0x80000000u : ~cut.key;
  return block_sum(sum) + cut.ties * row.mass(__uint_as_float(bits));
}

// The index of the cut's last token.
__device__ int token_at(const Row& row, Cut cut) {
  __shared__ unsigned before[kThreads];
  __shared__ int answer;
  __shared__ unsigned ties;
  const int each = (row.width + kThreads - 1) / kThreads;
  const int begin = threadIdx.x * each, end = min(begin + each, row.width);
  unsigned own = 0;
  for (int i = begin; i < end; ++i) own += key_of(row.logits[i]) == cut.key;
  before[threadIdx.x] = own;
  if (threadIdx.x == 0) answer = -1;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned sum = 0;
    for (int i = 0; i < kThreads; ++i) {
      const unsigned here = before[i];
      before[i] = sum;
      sum += here;
    }
    ties = min(cut.ties, sum);
  }
  __syncthreads();
  const unsigned mine = before[threadIdx.x];
  if (mine < ties && ties <= mine + own) {
    unsigned left = ties - mine;
    for (int i = begin; i < end; ++i)
      if (key_of(row.logits[i]) == cut.key && --left == 0) answer = i;
  }
  __syncthreads();
  return answer;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const Sampling s) {
  __shared__ Bins bins;
  let_next_start();
  wait_for_previous();
  const int r = blockIdx.x;
  Row row{s.logits + int64_t(r) * s.width, static_cast<int>(s.width), 0, 0};
  const unsigned long long best = row_best(row.logits, row.width);
  const int best_index = static_cast<int>(0xffffffffu - unsigned(best));
  if (s.temperature[r] == 0) {
    if (threadIdx.x == 0) s.out[r] = best_index;
    return;
  }
  row.inverse_temperature = 1.0f / s.temperature[r];
  row.top = row.logits[best_index];
  Cut cut{0, unsigned(row.width)};
  unsigned long long sum = 0;
  for (int i = threadIdx.x; i < row.width; i += kThreads) sum += row.mass(row.logits[i]);
  sum = block_sum(sum);
  const int64_t k = s.top_k[r];
  if (k > 0 && k < row.width) {
    cut = find(row, bins, k - 1, true);
    sum = mass_until(row, cut);
  }
  if (s.top_p[r] < 1) {
    // the token whose predecessors fall short of p is the last one kept
    const auto wanted = static_cast<unsigned long long>(double(s.top_p[r]) * double(sum));
    const Cut other = find(row, bins, wanted ? wanted - 1 : 0, false);
    if (other.key > cut.key || (other.key == cut.key && other.ties < cut.ties)) {
      cut = other;
      sum = mass_until(row, cut);
    }
  }
  if (s.min_p[r] > 0) {
    // every token below the share is dropped: the lowest key that is not
    const float least = row.top + logf(s.min_p[r]) / row.inverse_temperature;
    const uint32_t key = key_of(fminf(least, row.top));
    if (key > cut.key) {
      cut = {key - 1, 0};
      sum = mass_until(row, cut);
    }
  }
  const auto target = static_cast<unsigned long long>(double(s.uniform[r]) * double(sum));
  const Cut chosen = find(row, bins, target < sum ? target : sum - 1, false);
  const int token = token_at(row, chosen);
  if (threadIdx.x == 0) s.out[r] = token < 0 ? best_index : token;
}

__global__ void edit_kernel(const int64_t* rows, const int64_t* tokens, const float* scale,
                            const float* bias, float* out, int64_t count, int64_t width) {
  wait_for_previous();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float& x = out[rows[i] * width + tokens[i]];
  x = (x > 0 ? x / scale[i] : x * scale[i]) + bias[i];
}

}  // namespace

void sample(const Sampling& s, cudaStream_t stream) {
  if (s.rows) launch(sample_kernel, dim3(s.rows), kThreads, 0, stream, s);
}

void edit_logits(const float* logits, const int64_t* rows, const int64_t* tokens,
                 const float* scale, const float* bias, float* out, int64_t count, int64_t batch,
                 int64_t width, cudaStream_t stream) {
  check(
      cudaMemcpyAsync(out, logits, batch * width * sizeof(float), cudaMemcpyDeviceToDevice, stream),
      "copying the logits");
  if (count)
    launch(edit_kernel, dim3((count + 255) / 256), 256, 0, stream, rows, tokens, scale, bias, out,
           count, width);
}

}  // namespace qinfer::cuda
