// Norms of the heads, rotary embedding, and new keys and values into the cache.
#include "cache.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 256;

struct Arguments {
  Rotary r;
  int heads, kv_heads;
  int64_t items;  // heads of tokens
};

// D / 16 threads share a head: each holds eight numbers of its first half and their eight partners.
template <class T, Format F, int D>
struct Head {
  static constexpr int kLanes = D / 16;

  const Arguments& a;
  int64_t token;
  int head, lane;
  float low[8], high[8];

  __device__ __forceinline__ void load() {
    const int64_t row = token * (a.heads + 2 * a.kv_heads) + head;
    const T* from = static_cast<const T*>(a.r.qkv) + row * D + lane * 8;
    unpack8<T>(*reinterpret_cast<const uint4*>(from), low);
    unpack8<T>(*reinterpret_cast<const uint4*>(from + D / 2), high);
  }

  __device__ __forceinline__ void times(float factor) {
#pragma unroll
    for (int i = 0; i < 8; ++i) low[i] *= factor, high[i] *= factor;
  }

  template <class Join>
  __device__ __forceinline__ float over_head(float x, Join join) const {
#pragma unroll
    for (int d = kLanes / 2; d; d /= 2) x = join(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
  }

  // As a row of 16-bit numbers would hold it, which is what decoding does too. A shuffle takes the
  // whole warp, whose threads may hold heads of other kinds: `wanted` or not.
  __device__ __forceinline__ void normalise(const void* weight, bool wanted) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += low[i] * low[i] + high[i] * high[i];
    squares = over_head(squares, [](float x, float y) { return x + y; });
    if (!wanted) return;
    const float factor = rsqrtf(squares / D + a.r.eps);
    const T* from = static_cast<const T*>(weight) + lane * 8;
    float by[8];
    unpack8<T>(*reinterpret_cast<const uint4*>(from), by);
#pragma unroll
    for (int i = 0; i < 8; ++i) low[i] = number(T(low[i] * factor * by[i]));
    unpack8<T>(*reinterpret_cast<const uint4*>(from + D / 2), by);
#pragma unroll
    for (int i = 0; i < 8; ++i) high[i] = number(T(high[i] * factor * by[i]));
  }

  __device__ __forceinline__ void rotate(int64_t position) {
    const float* cos = a.r.table + position * 2 * D + lane * 8;
    float c[8], s[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      *reinterpret_cast<float4*>(c + i) = *reinterpret_cast<const float4*>(cos + i);
      // the second half's sines are those of the first with the sign that they go by
      *reinterpret_cast<float4*>(s + i) = *reinterpret_cast<const float4*>(cos + D + D / 2 + i);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float first = low[i];
      low[i] = first * c[i] - high[i] * s[i];
      high[i] = high[i] * c[i] + first * s[i];
    }
  }

  __device__ __forceinline__ void store(T* to) const {
    *reinterpret_cast<uint4*>(to + lane * 8) = pack8<T>(low);
    *reinterpret_cast<uint4*>(to + D / 2 + lane * 8) = pack8<T>(high);
  }

  // A static scale, or this token's own, which is kept.
  __device__ __forceinline__ float scale_of(float* scales, int64_t at, bool kept) const {
    if (a.r.is_static) return scales[at % a.kv_heads];
    float most = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fmaxf(fabsf(low[i]), fabsf(high[i])));
    most = over_head(most, [](float x, float y) { return fmaxf(x, y); });
    const float scale = fmaxf(__fdiv_rn(most, Stored<T, F>::kMost), 1e-30f);
    if (kept && lane == 0) scales[at] = scale;
    return scale;
  }

  // Into the cache; scaled where it holds eight bits. All threads of a warp take part.
  __device__ __forceinline__ void keep(void* cache, float* scales, int64_t at, bool kept) const {
    using Held = Stored<T, F>;
    if constexpr (F == Format::kPlain) {
      if (kept) store(static_cast<T*>(cache) + at * D);
    } else {
      const float scale = scale_of(scales, at, kept);
      if (!kept) return;
      typename Held::Item codes[2][8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        codes[0][i] = Held::pack(__fdiv_rn(low[i], scale));
        codes[1][i] = Held::pack(__fdiv_rn(high[i], scale));
      }
      auto* to = static_cast<uint8_t*>(cache) + at * D + lane * 8;
      *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(codes[0]);
      *reinterpret_cast<uint2*>(to + D / 2) = *reinterpret_cast<const uint2*>(codes[1]);
    }
  }
};

template <class T, Format F, int D>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const Arguments a) {
  let_next_start();
  wait_for_previous();
  using Own = Head<T, F, D>;
  const int64_t item = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / Own::kLanes;
  const bool inside = item < a.items;
  const int all = a.heads + 2 * a.kv_heads;
  const int64_t token = (inside ? item : 0) / all;
  Own own{a, token, static_cast<int>((inside ? item : 0) % all),
          static_cast<int>(threadIdx.x % Own::kLanes)};
  own.load();
  const bool is_query = own.head < a.heads, is_key = !is_query && own.head < a.heads + a.kv_heads;
  if (a.r.q_norm) own.normalise(is_query ? a.r.q_norm : a.r.k_norm, is_query || is_key);
  const int64_t position = a.r.at[token];
  if (is_query || is_key) own.rotate(position);
  if (is_query && a.r.query_scale)
    own.times(number(static_cast<const T*>(a.r.query_scale)[position]));
  const int64_t slot = a.r.slots[token];
  const int kv = own.head - a.heads - (is_key ? 0 : a.kv_heads);
  const bool kept = inside && !is_query && slot >= 0;
  own.keep(is_key ? a.r.keys : a.r.values, is_key ? a.r.key_scales : a.r.value_scales,
           kept ? slot * a.kv_heads + kv : 0, kept);
  if (inside && is_query)
    own.store(static_cast<T*>(a.r.queries) + (token * a.heads + own.head) * D);
}

template <class T, Format F, int D>
void run(const Rotary& r, cudaStream_t stream) {
  const Arguments a{r, static_cast<int>(r.heads), static_cast<int>(r.kv_heads),
                    r.tokens * (r.heads + 2 * r.kv_heads)};
  const int64_t each = kThreads / (D / 16);
  launch(rotary_kernel<T, F, D>, dim3((a.items + each - 1) / each), kThreads, 0, stream, a);
}

template <class T, Format F>
void of_dim(const Rotary& r, cudaStream_t stream) {
  switch (r.dim) {
    case 16:
      return run<T, F, 16>(r, stream);
    case 32:
      return run<T, F, 32>(r, stream);
    case 64:
      return run<T, F, 64>(r, stream);
    case 128:
      return run<T, F, 128>(r, stream);
    default:
      return run<T, F, 256>(r, stream);
  }
}

template <class T>
void of_cache(const Rotary& r, cudaStream_t stream) {
  if (r.held == Format::kInt8)
    of_dim<T, Format::kInt8>(r, stream);
  else if (r.held == Format::kE4M3)
    of_dim<T, Format::kE4M3>(r, stream);
  else
    of_dim<T, Format::kPlain>(r, stream);
}

}  // namespace

void rotary_kv_write(Type type, const Rotary& r, cudaStream_t stream) {
  if (!r.tokens) return;
  if (type == Type::kBF16)
    of_cache<BF16>(r, stream);
  else
    of_cache<F16>(r, stream);
}

}  // namespace qinfer::cuda
