// Choosing tokens on the card. Sampling sorts nothing: the token at a given place of the order
// "largest first, then smallest index" is found digit by digit in the logits' bits, with integer
// masses, so that the same numbers give the same token always.
#include "cuts.cuh"

namespace qinfer::cuda {
namespace {

// The largest of a thread's own logits: every kThreads-th.
__device__ __forceinline__ unsigned long long own_best(const float* row, int width) {
  unsigned long long best = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const unsigned long long rank = rank_of(row[i], i);
    best = rank > best ? rank : best;
  }
  return best;
}

constexpr int kShort = 1536;

// Some tokens of a row, in no order.
struct Short {
  float logits[kShort];
  int index[kShort];
  unsigned count;
};

// The cut at the k-th token. The row becomes that of the tokens up to there, with all that have its
// key, unless they are too many: later steps read a few numbers instead of a vocabulary.
__device__ Cut shorten(Row& row, Short& few, Bins& bins, unsigned long long own, int64_t k) {
  uint32_t least = 0;
  if (k <= kThreads) {  // the k-th is at least the k-th of each thread's best
    few.logits[threadIdx.x] = number_of(uint32_t(own >> 32));
    __syncthreads();
    least = find(Row{few.logits, kThreads, 0, 0}, bins, k - 1, true).key;
  }
  const Cut cut = find(row, bins, k - 1, true, least);
  if (threadIdx.x == 0) few.count = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < row.width; i += kThreads) {
    const float logit = row.logits[i];
    if (key_of(logit) < cut.key) continue;
    const unsigned at = atomicAdd(&few.count, 1u);
    if (at < kShort) few.logits[at] = logit, few.index[at] = i;
  }
  __syncthreads();
  if (few.count <= kShort) {
    row.logits = few.logits, row.index = few.index, row.width = static_cast<int>(few.count);
  }
  return cut;
}

// The cut's last token, of a row with tokens left out.
__device__ int token_of_short(const Row& row, Cut cut) {
  int token = -1;
  for (unsigned tie = 0; tie < cut.ties; ++tie) {  // the next larger index
    unsigned long long next = 0;
    for (int i = threadIdx.x; i < row.width; i += kThreads) {
      if (key_of(row.logits[i]) != cut.key || row.index[i] <= token) continue;
      const unsigned long long early = 0xffffffffu - unsigned(row.index[i]);
      next = early > next ? early : next;
    }
    next = block_best(next);
    if (!next) break;
    token = static_cast<int>(0xffffffffu - unsigned(next));
  }
  return token;
}

// The cut's last token.
__device__ int token_at(const Row& row, Cut cut) {
  if (row.index) return token_of_short(row, cut);
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
  __shared__ Short few;
  let_next_start();
  wait_for_previous();
  const int r = blockIdx.x;
  Row row{s.logits + int64_t(r) * s.width, static_cast<int>(s.width), 0, 0};
  const unsigned long long own = own_best(row.logits, row.width), best = block_best(own);
  const int best_index = static_cast<int>(0xffffffffu - unsigned(best));
  if (s.temperature[r] == 0) {
    if (threadIdx.x == 0) s.out[r] = best_index;
    return;
  }
  row.inverse_temperature = 1.0f / s.temperature[r];
  row.top = row.logits[best_index];
  Cut cut{0, unsigned(row.width)};
  unsigned long long sum = 0;
  const int64_t k = s.top_k[r];
  if (k > 0 && k < row.width) {
    cut = shorten(row, few, bins, own, k);
    sum = mass_until(row, cut);
  } else {
    for (int i = threadIdx.x; i < row.width; i += kThreads) sum += row.mass(row.logits[i]);
    sum = block_sum(sum);
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
