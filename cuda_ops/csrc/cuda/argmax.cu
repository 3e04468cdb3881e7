// The largest logit of each row. One row is shared out to several blocks, as a single one reads
// too slowly; the last of them to end gives the answer.
#include <algorithm>

#include "ranks.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kMostRows = 256;  // that are shared out
constexpr int kMostParts = 32;  // of a row
constexpr int kTogether = 4;    // loads of a thread on their way

__device__ unsigned long long best_of[kMostRows];  // zero between launches, as the next
__device__ unsigned arrived_of[kMostRows];

__device__ __forceinline__ unsigned long long part_best(const float* row, int width) {
  unsigned long long best = 0;
  const int step = gridDim.x * kThreads;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < width; i += step * kTogether) {
    float held[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      if (i + j * step < width) held[j] = row[i + j * step];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (i + j * step >= width) continue;
      const unsigned long long rank = rank_of(held[j], i + j * step);
      best = rank > best ? rank : best;
    }
  }
  return block_best(best);
}

__global__ void __launch_bounds__(kThreads)
    argmax_kernel(const float* logits, int64_t* out, int width) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.y;
  unsigned long long best = part_best(logits + int64_t(row) * width, width);
  if (threadIdx.x) return;
  if (gridDim.x > 1) {
    atomicMax(&best_of[row], best);
    __threadfence();
    if (atomicAdd(&arrived_of[row], 1u) != gridDim.x - 1) return;
    __threadfence();
    best = atomicExch(&best_of[row], 0ull);
    arrived_of[row] = 0;
  }
  out[row] = 0xffffffffu - unsigned(best);
}

}  // namespace

void argmax(const float* logits, int64_t* out, int64_t rows, int64_t width, cudaStream_t stream) {
  if (!rows) return;
  const int64_t most = rows > kMostRows ? 1 : kMostParts;
  const int64_t parts = std::clamp<int64_t>(2 * multiprocessors() / rows, 1, most);
  launch(argmax_kernel, dim3(parts, rows), kThreads, 0, stream, logits, out,
         static_cast<int>(width));
}

}  // namespace qinfer::cuda
