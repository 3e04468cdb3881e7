// Attention of single queries: the keys of a sequence are shared out among blocks ("split KV"),
// and the last block of a query to end puts the parts together.
#include <algorithm>

#include "attention.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kUnroll = 4;
constexpr int kMostParts = 64, kMostStates = 64;
constexpr int kLeast = 64;  // keys that are worth a block of their own
constexpr int kMostPairs = 1 << 18;
__device__ unsigned arrived[kMostPairs];  // parts that are done; zero between launches

__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// One group of threads, that holds a row of D numbers eight to a thread, and what it has seen.
template <int G>
struct Seen {
  float most[G], total[G], sum[G][8];
};

template <class T, int D, int G>
struct Attend {
  static constexpr int kLanes = D / 8;       // that share a row
  static constexpr int kRows = 32 / kLanes;  // of a warp
  static constexpr int kStates = kRows * kWarps;

  const Heads& p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int column = lane % kLanes, own = lane / kLanes;
  int kv, group, first_head;
  float query[G][8];
  Seen<G> seen;

  __device__ explicit Attend(const Heads& heads) : p(heads) {
    group = p.heads / p.kv_heads;
    // a head group larger than G takes several blocks
    const int chunks = (group + G - 1) / G;
    kv = blockIdx.y / chunks;
    const int chunk = blockIdx.y % chunks;
    first_head = kv * group + chunk * G;
    group = min(G, group - chunk * G);
  }

  __device__ __forceinline__ void start(int token) {
    const T* from = static_cast<const T*>(p.queries) + (int64_t(token) * p.heads + first_head) * D;
#pragma unroll
    for (int h = 0; h < G; ++h) {
      uint4 v = {};
      if (h < group) v = *reinterpret_cast<const uint4*>(from + h * D + column * 8);
      unpack8<T>(v, query[h]);
      seen.most[h] = -1e30f, seen.total[h] = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) query[h][i] *= p.scale, seen.sum[h][i] = 0;
    }
  }

  __device__ __forceinline__ void look(const int32_t* table, int begin, int end) {
    const auto* keys = static_cast<const T*>(p.keys);
    const auto* values = static_cast<const T*>(p.values);
    for (int j = begin + warp * kRows * kUnroll; j < end; j += kWarps * kRows * kUnroll) {
      uint4 k[kUnroll], v[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int at = min(j + u * kRows + own, end - 1);
        const int64_t slot = int64_t(table[at / p.block_size]) * p.block_size + at % p.block_size;
        const int64_t from = (slot * p.kv_heads + kv) * D + column * 8;
        k[u] = *reinterpret_cast<const uint4*>(keys + from);
        v[u] = *reinterpret_cast<const uint4*>(values + from);
      }
      float weight[kUnroll][G];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float key[8];
        unpack8<T>(k[u], key);
        const bool inside = j + u * kRows + own < end;
#pragma unroll
        for (int h = 0; h < G; ++h) {
          float score = 0;
#pragma unroll
          for (int i = 0; i < 8; ++i) score += query[h][i] * key[i];
#pragma unroll
          for (int d = kLanes / 2; d; d /= 2) score += __shfl_xor_sync(0xffffffffu, score, d);
          weight[u][h] = inside ? score : -1e30f;
        }
      }
#pragma unroll
      for (int h = 0; h < G; ++h) {
        float most = seen.most[h];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) most = fmaxf(most, weight[u][h]);
        const float old = power2(seen.most[h] - most);
        seen.most[h] = most;
        seen.total[h] *= old;
#pragma unroll
        for (int i = 0; i < 8; ++i) seen.sum[h][i] *= old;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const bool inside = j + u * kRows + own < end;
          weight[u][h] = inside ? power2(weight[u][h] - most) : 0.0f;
          seen.total[h] += weight[u][h];
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float value[8];
        unpack8<T>(v[u], value);
#pragma unroll
        for (int h = 0; h < G; ++h)
#pragma unroll
          for (int i = 0; i < 8; ++i) seen.sum[h][i] += weight[u][h] * value[i];
      }
    }
  }
};

// Several states of each of G heads, (D numbers, largest score, total), to be made one: a factor
// for each state, and each head's largest score and total. `state(h, n)` points at a state.
template <int D, int G, int Most>
struct Factors {
  float of[G][Most], most[G], total[G];

  template <class State>
  __device__ __forceinline__ void find(int heads, int count, State state) {
    for (int i = threadIdx.x; i < heads * count; i += kThreads)
      of[i / count][i % count] = *(state(i / count, i % count) + D);
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int h = warp; h < heads; h += kWarps) {
      float top = -1e30f, sum = 0;
      for (int n = lane; n < count; n += 32) top = fmaxf(top, of[h][n]);
      top = warp_max(top);
      for (int n = lane; n < count; n += 32) {
        const float factor = power2(of[h][n] - top);
        of[h][n] = factor;
        sum += factor * *(state(h, n) + D + 1);
      }
      sum = warp_sum(sum);
      if (lane == 0) most[h] = top, total[h] = sum;
    }
    __syncthreads();
  }

  template <class State>
  __device__ __forceinline__ float sum(int h, int d, int count, State state) const {
    float all = 0;
#pragma unroll 8
    for (int n = 0; n < count; ++n) all += of[h][n] * *(state(h, n) + d);
    return all;
  }
};

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
