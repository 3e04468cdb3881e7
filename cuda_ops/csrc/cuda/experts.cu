// Routing of tokens to experts, the order of their pairs, and the weighted sum of the results.
#include <algorithm>

#include "common.cuh"
#include "grouped.h"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kSorters = 1024;

// A number that orders as x does and is never 0; NaN comes last.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(isnan(x) ? -3e38f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// A warp for each token, which keeps K logits in each thread.
template <class T, int K>
__global__ void __launch_bounds__(kThreads) route_kernel(const Routing r) {
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32;
  const int64_t token = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (token >= r.tokens) return;
  const T* row = static_cast<const T*>(r.logits) + token * r.count;
  uint32_t keys[K];
  float most = -3e38f;
#pragma unroll
  for (int i = 0; i < K; ++i) {
    const int expert = i * 32 + lane;
    keys[i] = expert < r.count ? key_of(number(row[expert])) : 0;
    if (keys[i]) most = fmaxf(most, of_key(keys[i]));
  }
  most = warp_max(most);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < K; ++i)
    if (keys[i]) sum += expf(of_key(keys[i]) - most);
  sum = warp_sum(sum);
  float chosen = 0;
  for (int j = 0; j < r.top_k; ++j) {
    unsigned long long best = 0;
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const auto rank = static_cast<unsigned long long>(keys[i]) << 32 | (~0u - (i * 32 + lane));
      best = rank > best ? rank : best;
    }
#pragma unroll
    for (int d = 16; d; d /= 2) {
      const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, d);
      best = other > best ? other : best;
    }
    const int expert = static_cast<int>(~0u - static_cast<uint32_t>(best));
#pragma unroll
    for (int i = 0; i < K; ++i)
      if (i * 32 + lane == expert) keys[i] = 0;
    const float weight = expf(of_key(static_cast<uint32_t>(best >> 32)) - most);
    chosen += weight;
    if (lane == 0) {
      r.experts[token * r.top_k + j] = expert;
      r.weights[token * r.top_k + j] = weight;
    }
  }
  __syncwarp();
  const float scale = 1.0f / (r.normalise ? chosen : sum);
  for (int j = lane; j < r.top_k; j += 32) r.weights[token * r.top_k + j] *= scale;
}

template <class T>
__global__ void __launch_bounds__(kThreads) mix_kernel(const Mixture m) {
  let_next_start();
  wait_for_previous();
  const int64_t token = blockIdx.y, i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (i >= m.width) return;
  float total[8] = {}, v[8];
  const T* routed = static_cast<const T*>(m.routed) + token * m.top_k * m.width + i;
  for (int j = 0; j < m.top_k; ++j) {
    const float weight = m.weights[token * m.top_k + j];
    unpack8<T>(*reinterpret_cast<const uint4*>(routed + j * m.width), v);
#pragma unroll
    for (int e = 0; e < 8; ++e) total[e] += weight * v[e];
  }
  if (m.shared) {
    const float open = 1.0f / (1.0f + __expf(-number(static_cast<const T*>(m.gate)[token])));
    unpack8<T>(
        *reinterpret_cast<const uint4*>(static_cast<const T*>(m.shared) + token * m.width + i), v);
#pragma unroll
    for (int e = 0; e < 8; ++e) total[e] += open * v[e];
  }
  *reinterpret_cast<uint4*>(static_cast<T*>(m.y) + token * m.width + i) = pack8<T>(total);
}

// Of each thread's number: the sum of those before it, and of all. For kSorters threads.
__device__ int before(int own, int& all) {
  __shared__ int sums[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int until = own;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, until, d);
    if (lane >= d) until += other;
  }
  __syncthreads();  // `sums` may still be read from the call before
  if (lane == 31) sums[warp] = until;
  __syncthreads();
  int earlier = 0;
  all = 0;
  for (int w = 0; w < kSorters / 32; ++w) {
    if (w < warp) earlier += sums[w];
    all += sums[w];
  }
  return earlier + until - own;
}

// One block: counts, their running sums, then each pair to its place. Pairs of an expert may come
// in any order: a row's result does not depend on its place in a tile.
__global__ void __launch_bounds__(kSorters)
    group_kernel(const int32_t* experts, int pairs, int count, int rows, int32_t* order,
                 Tile* tiles, int most) {
  __shared__ int found[kMostExperts];
  const int me = threadIdx.x;
  if (me < kMostExperts) found[me] = 0;
  __syncthreads();
  let_next_start();
  wait_for_previous();
  for (int i = me; i < pairs; i += kSorters) atomicAdd(&found[experts[i]], 1);
  __syncthreads();
  const int mine = me < count ? found[me] : 0;
  int all = 0, used = 0;
  const int start = before(mine, all);
  int tile = before((mine + rows - 1) / rows, used);
  __syncthreads();
  if (me < count) found[me] = start;
  __syncthreads();
  for (int i = me; i < pairs; i += kSorters) order[atomicAdd(&found[experts[i]], 1)] = i;
  for (int at = 0; at < mine; at += rows, ++tile)
    tiles[tile] = {me, start + at, min(rows, mine - at)};
  for (int i = used + me; i < most; i += kSorters) tiles[i] = {0, 0, 0};
}

template <class T>
void route_tokens(const Routing& r, cudaStream_t stream) {
  const dim3 grid((r.tokens + kWarps - 1) / kWarps);
  auto* kernel = r.count <= 64    ? route_kernel<T, 2>
                 : r.count <= 128 ? route_kernel<T, 4>
                 : r.count <= 256 ? route_kernel<T, 8>
                                  : route_kernel<T, 16>;
  launch(kernel, grid, kThreads, 0, stream, r);
}

}  // namespace

void route(Type type, const Routing& r, cudaStream_t stream) {
  if (!r.tokens) return;
  if (type == Type::kBF16)
    route_tokens<BF16>(r, stream);
  else
    route_tokens<F16>(r, stream);
}

void mix_experts(Type type, const Mixture& m, cudaStream_t stream) {
  if (!m.tokens) return;
  const dim3 grid((m.width + kThreads * 8 - 1) / (kThreads * 8), m.tokens);
  launch(type == Type::kBF16 ? mix_kernel<BF16> : mix_kernel<F16>, grid, kThreads, 0, stream, m);
}

int64_t most_tiles(int64_t pairs, int64_t experts, int64_t rows) {
  return std::min(pairs, std::min(pairs, experts) + pairs / rows);
}

void group_pairs(const int32_t* experts, int64_t pairs, int64_t count, int64_t rows, int32_t* order,
                 Tile* tiles, cudaStream_t stream) {
  if (!pairs) return;
  launch(group_kernel, dim3(1), kSorters, 0, stream, experts, static_cast<int>(pairs),
         static_cast<int>(count), static_cast<int>(rows), order, tiles,
         static_cast<int>(most_tiles(pairs, count, rows)));
}

}  // namespace qinfer::cuda
