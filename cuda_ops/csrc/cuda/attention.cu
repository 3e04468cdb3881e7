// Attention of single queries: the keys of a sequence are shared out among blocks ("split KV"),
// and the last block of a query to end puts the parts together.
#include <algorithm>

#include "attend.cuh"

namespace qinfer::cuda {
namespace {

using namespace attending;

constexpr int kMostPairs = 1 << 18;
__device__ unsigned arrived[kMostPairs];  // parts that are done; zero between launches

template <class T, int D, int G>
__global__ void __launch_bounds__(kThreads) attend_kernel(const Heads p) {
  let_next_start();
  constexpr int kStates = Attend<T, D, G>::kStates;
  __shared__ float states[G][kStates][D + 2];
  Attend<T, D, G> attend(p);
  const int token = blockIdx.x, part = blockIdx.z;
  wait_for_previous();
  const bool is_single = p.tokens == p.sequences;  // one token each
  const int s = is_single ? token : search(p.sequences, token, [&](int i) { return p.starts[i]; });
  const int visible = p.lengths[s] - (is_single ? 0 : p.starts[s + 1] - 1 - token);
  const int each = max((visible + p.parts - 1) / p.parts, kLeast);
  const int used = max((visible + each - 1) / each, 1);  // parts that have keys
  if (part >= used) return;
  attend.start(token);
  attend.look(p.tables + int64_t(s) * p.width, part * each, min(part * each + each, visible));
#pragma unroll
  for (int h = 0; h < G; ++h) {
    float* mine = states[h][attend.warp * attend.kRows + attend.own];
#pragma unroll
    for (int i = 0; i < 8; ++i) mine[attend.column * 8 + i] = attend.seen.sum[h][i];
    if (attend.column == 0) mine[D] = attend.seen.most[h], mine[D + 1] = attend.seen.total[h];
  }
  __syncthreads();
  __shared__ Factors<D, G, kMostStates> factors;
  const auto state = [&](int h, int n) -> const float* { return states[h][n]; };
  factors.find(attend.group, kStates, state);
  T* out = static_cast<T*>(p.out) + (int64_t(token) * p.heads + attend.first_head) * D;
  const int64_t pair = int64_t(token) * gridDim.y + blockIdx.y;
  float* parts = p.scratch + pair * p.parts * G * (D + 2);
  for (int i = threadIdx.x; i < attend.group * D; i += kThreads) {
    const int h = i / D, d = i % D;
    const float sum = factors.sum(h, d, kStates, state), total = factors.total[h];
    if (used == 1) {
      out[i] = T(total > 0 ? sum / total : 0.0f);
      continue;
    }
    float* mine = parts + (part * G + h) * (D + 2);
    mine[d] = sum;
    if (d == 0) mine[D] = factors.most[h], mine[D + 1] = total;
  }
  if (used == 1) return;
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&arrived[pair], 1u) == unsigned(used) - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  // Written by other blocks: not to be read through this multiprocessor's own cache.
  const auto other = [&](int h, int n) -> const volatile float* {
    return parts + (n * G + h) * (D + 2);
  };
  factors.find(attend.group, used, other);
  for (int i = threadIdx.x; i < attend.group * D; i += kThreads) {
    const float total = factors.total[i / D];
    out[i] = T(total > 0 ? factors.sum(i / D, i % D, used, other) / total : 0.0f);
  }
  if (threadIdx.x == 0) arrived[pair] = 0;
}

int heads_together(const Paged& p) {
  const int64_t group = p.heads / p.kv_heads;
  return group == 1 ? 1 : group == 2 ? 2 : 4;
}

int64_t pairs(const Paged& p) {
  const int64_t group = p.heads / p.kv_heads, together = heads_together(p);
  return p.tokens * p.kv_heads * ((group + together - 1) / together);
}

// From sizes alone, as a recorded step is replayed with other lengths.
int parts_of(const Paged& p) {
  if (pairs(p) > kMostPairs) return 1;
  const int64_t wanted = (4 * multiprocessors() + pairs(p) - 1) / std::max<int64_t>(pairs(p), 1);
  const int64_t most = (p.width * p.block_size + kLeast - 1) / kLeast;
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, most), 1, kMostParts));
}

template <class T, int D, int G>
void run(const Paged& p, cudaStream_t stream) {
  const Heads h = heads_of(p, parts_of(p));
  const dim3 grid(p.tokens, pairs(p) / p.tokens, h.parts);
  launch(attend_kernel<T, D, G>, grid, kThreads, 0, stream, h);
}

template <class T, int D>
void of_group(const Paged& p, cudaStream_t stream) {
  const int together = heads_together(p);
  if (together == 1)
    run<T, D, 1>(p, stream);
  else if (together == 2)
    run<T, D, 2>(p, stream);
  else
    run<T, D, 4>(p, stream);
}

template <class T>
void of_dim(const Paged& p, cudaStream_t stream) {
  switch (p.dim) {
    case 16:
      return of_group<T, 16>(p, stream);
    case 32:
      return of_group<T, 32>(p, stream);
    case 64:
      return of_group<T, 64>(p, stream);
    case 128:
      return of_group<T, 128>(p, stream);
    default:
      return of_group<T, 256>(p, stream);
  }
}

}  // namespace

Heads heads_of(const Paged& p, int parts) {
  constexpr float kLog2E = 1.4426950408889634f;
  return {p.queries,
          p.keys,
          p.values,
          p.starts,
          p.lengths,
          p.tables,
          p.out,
          p.scratch,
          static_cast<int>(p.tokens),
          static_cast<int>(p.sequences),
          static_cast<int>(p.width),
          static_cast<int>(p.block_size),
          static_cast<int>(p.heads),
          static_cast<int>(p.kv_heads),
          parts,
          p.scale * kLog2E,
          p.window,
          p.key_scales,
          p.value_scales,
          p.is_static};
}

namespace {
bool is_special(const Paged& p) { return p.window || p.held != Format::kPlain; }
bool is_prefill(const Paged& p) {
  return (p.tokens > p.sequences || is_special(p)) && prefill_knows(p.dim);
}
}  // namespace

bool head_size_known(int64_t dim) {
  return dim == 16 || dim == 32 || dim == 64 || dim == 128 || dim == 256;
}

bool attention_knows(const Paged& p) {
  return head_size_known(p.dim) && (!is_special(p) || prefill_knows(p.dim));
}

int64_t attention_scratch(const Paged& p) {
  const int parts = is_prefill(p) ? 1 : parts_of(p);
  return parts == 1 ? 0 : pairs(p) * parts * heads_together(p) * (p.dim + 2);
}

void paged_attention(Type type, const Paged& p, cudaStream_t stream) {
  if (!p.tokens) return;
  if (is_prefill(p))
    prefill(type, p, stream);
  else if (type == Type::kBF16)
    of_dim<BF16>(p, stream);
  else
    of_dim<F16>(p, stream);
}

}  // namespace qinfer::cuda
