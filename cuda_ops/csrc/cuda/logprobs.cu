// Log-probabilities of the chosen and of the best tokens.
#include "ranks.cuh"

namespace qinfer::cuda {
namespace {

// A block for each row, which it reads once for every token wanted: a row stays in the cache.
__global__ void __launch_bounds__(kThreads) logprob_kernel(const Logprobs l) {
  let_next_start();
  wait_for_previous();
  const float* row = l.logits + int64_t(blockIdx.x) * l.width;
  const int width = static_cast<int>(l.width);
  unsigned long long last = ~0ull;  // the rank of the one found before
  float most = 0, log_sum = 0;
  for (int j = -1; j < l.count || j < 0; ++j) {
    unsigned long long best = 0;
    for (int i = threadIdx.x; i < width; i += kThreads) {
      const unsigned long long rank = rank_of(row[i], i);
      if (rank < last && rank > best) best = rank;
    }
    best = block_best(best);
    const int index = static_cast<int>(0xffffffffu - unsigned(best));
    if (j < 0) {
      most = row[index];
      float sum = 0;
      for (int i = threadIdx.x; i < width; i += kThreads) sum += expf(row[i] - most);
      log_sum = logf(block_sum(sum));
      if (threadIdx.x == 0) l.picked[blockIdx.x] = row[l.chosen[blockIdx.x]] - most - log_sum;
      continue;  // the best again, as the first of those wanted
    }
    last = best;
    if (threadIdx.x == 0) {
      l.top[int64_t(blockIdx.x) * l.count + j] = row[index] - most - log_sum;
      l.ids[int64_t(blockIdx.x) * l.count + j] = index;
    }
  }
}

}  // namespace

void token_logprobs(const Logprobs& l, cudaStream_t stream) {
  if (l.rows) launch(logprob_kernel, dim3(l.rows), kThreads, 0, stream, l);
}

}  // namespace qinfer::cuda
