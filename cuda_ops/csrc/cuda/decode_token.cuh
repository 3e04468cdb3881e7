// What a step brings of a sequence's newest token: queries, key and value, as the product left
// them.
#pragma once
#include "decode_shared.cuh"

namespace qinfer::cuda::decoding {

// Four numbers of the lower half of a head's D, and those of the upper half that they are turned
// with. The kLanes threads that have a head are neighbours in a warp.
template <class T, int D>
struct Piece {
  static constexpr int kLanes = D / 8;
  float low[4], high[4];

  // As it comes from memory.
  struct Raw {
    uint2 low, high;
    // `from`: the first of them.
    static __device__ __forceinline__ Raw read(const T* from) {
      return {__ldcg(reinterpret_cast<const uint2*>(from)),
              __ldcg(reinterpret_cast<const uint2*>(from + D / 2))};
    }
  };
  __device__ __forceinline__ explicit Piece(const Raw& raw) {
    four(raw.low, low), four(raw.high, high);
  }

  template <class Join>
  static __device__ __forceinline__ float joined(float x, Join join) {
#pragma unroll 1
    for (int d = 1; d < kLanes; d *= 2) x = join(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
  }
  __device__ __forceinline__ float largest() const {
    float most = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) most = fmaxf(most, fmaxf(fabsf(low[i]), fabsf(high[i])));
    return joined(most, [](float a, float b) { return fmaxf(a, b); });
  }

  // As a row of 16-bit numbers would hold it.
  __device__ __forceinline__ void normalise(const Raw& weight, float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) squares += low[i] * low[i] + high[i] * high[i];
    squares = joined(squares, [](float a, float b) { return a + b; });
    const float factor = rsqrtf(squares / D + eps);
    const Piece by(weight);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] = number(T(low[i] * factor * by.low[i]));
      high[i] = number(T(high[i] * factor * by.high[i]));
    }
  }

  // Of a row of the table, numbers of the cosine and of minus the sine.
  __device__ __forceinline__ void rotate(const float4& cosine, const float4& sine) {
    const float cos[4] = {cosine.x, cosine.y, cosine.z, cosine.w};
    const float sin[4] = {sine.x, sine.y, sine.z, sine.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a * cos[i] + b * sin[i], high[i] = b * cos[i] - a * sin[i];
    }
  }

  // put(first number, four numbers) for both halves.
  template <class Put>
  __device__ __forceinline__ void each(int at, Put put) const {
    put(at, low), put(at + D / 2, high);
  }

 private:
  static __device__ __forceinline__ void four(const uint2& from, float (&to)[4]) {
    const float2 a = unpack<T>(from.x), b = unpack<T>(from.y);
    to[0] = a.x, to[1] = a.y, to[2] = b.x, to[3] = b.y;
  }
};

template <class T, Format F, int D, class P>
struct Token {
  using Numbers = Piece<T, D>;
  using Raw = typename Numbers::Raw;
  using S = Shared<T, F, D, P>;
  using Item = typename S::Item;
  static constexpr int kLanes = Numbers::kLanes, kRows = P::kThreads / kLanes;  // at a time
  static_assert(2 * kRows >= kHeads + 2, "a thread has two rows at the most");

  const Arguments& a;
  const Decode& p;
  S& s;
  const int token = blockIdx.z, at = threadIdx.x % kLanes * 4;  // first number of this thread
  int kv, first_head, group;
  // This thread's rows are `first` and kRows further on. The first `group` are queries, then come a
  // key and a value, if this block has the newest.
  const int first = threadIdx.x / kLanes;
  int rows;
  const T* from[2];  // in the product
  // What does not come from the kernel before is asked for before that is waited for.
  const int64_t slot, position;
  float4 cos, sin;
  Raw q_norm, k_norm;
  float query_scale = 1;

  __device__ __forceinline__ Token(const Arguments& arguments, S& shared)
      : a(arguments),
        p(arguments.d),
        s(shared),
        slot(p.slots[token]),
        position(p.positions[token]) {
    kv = a.groups(blockIdx.y);
    const int part = blockIdx.y - kv * a.groups.value;
    first_head = kv * a.each + part * kHeads;
    group = min(kHeads, a.each - part * kHeads);
  }

  __device__ __forceinline__ void know(bool has_newest) {
    const float* turn = p.rotary + position * 2 * D + at;
    cos = *reinterpret_cast<const float4*>(turn), sin = *reinterpret_cast<const float4*>(turn + D);
    if (p.q_norm) q_norm = Raw::read(static_cast<const T*>(p.q_norm) + at);
    if (p.k_norm) k_norm = Raw::read(static_cast<const T*>(p.k_norm) + at);
    if (p.query_scale) query_scale = number(static_cast<const T*>(p.query_scale)[position]);
    rows = group + (has_newest ? 2 : 0);
    const T* own = static_cast<const T*>(p.qkv) + int64_t(token) * (a.heads + 2 * a.kv_heads) * D;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + i * kRows, newest = a.heads + kv + (row - group) * a.kv_heads;
      from[i] = own + (row < group ? first_head + row : newest) * D + at;
      asm volatile("" : "+l"(from[i]));  // is known before something is waited for
    }
  }

  // The queries and, where this block has them, the newest key and value: into shared memory, and
  // those two into the cache as well.
  __device__ __forceinline__ void take() {
    constexpr int kOfWarp = 32 / kLanes;  // rows
    Raw raw = {}, next = {};
    if (first < rows) raw = Raw::read(from[0]);
    if (first + kRows < rows) next = Raw::read(from[1]);
#pragma unroll 1
    for (int row = first; row / kOfWarp * kOfWarp < rows; row += kRows, raw = next) take(row, raw);
  }

 private:
  // By whole warps, those without a row included.
  __device__ __forceinline__ void take(int row, const Raw& raw) {
    Numbers x(raw);
    const bool is_query = row < group;
    const bool is_value = row > group;
    if (p.q_norm || p.k_norm) {
      Numbers normed = x;
      normed.normalise(either(is_query, k_norm, q_norm), p.eps);
      if (!is_value && either(is_query, p.k_norm, p.q_norm)) x = normed;
    }
    if (!is_value) x.rotate(cos, sin);
    float scale = 1;
    if constexpr (F != Format::kPlain)
      if (rows > group) scale = scale_of(x, is_value);
    if (row >= rows) return;
    if (is_query)
      x.each(at, [&](int d, const float(&v)[4]) {
        *reinterpret_cast<uint2*>(&s.queries[row][d]) = {
            pack<T>(v[0] * query_scale, v[1] * query_scale),
            pack<T>(v[2] * query_scale, v[3] * query_scale)};
      });
    else
      keep(x, is_value, scale);
  }

  __device__ __forceinline__ float scale_of(const Numbers& x, bool is_value) const {
    if (p.is_static) return either(is_value, p.key_scales, p.value_scales)[kv];
    return fmaxf(x.largest() / Stored<T, F>::kMost, 1e-30f);
  }

  __device__ __forceinline__ void keep(const Numbers& x, bool is_value, float scale) {
    const int64_t to = slot * a.kv_heads + kv;
    if (F != Format::kPlain && at == 0) {
      s.newest_scales[is_value] = scale;
      if (slot >= 0 && !p.is_static) either(is_value, p.key_scales, p.value_scales)[to] = scale;
    }
    auto* cache = static_cast<Item*>(either(is_value, p.keys, p.values)) + to * D;
    x.each(at, [&](int d, const float(&v)[4]) {
      struct alignas(4 * sizeof(Item)) {
        Item of[4];
      } items;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        items.of[i] = Stored<T, F>::pack(F == Format::kPlain ? v[i] : v[i] / scale);
      using Items = decltype(items);
      *reinterpret_cast<Items*>(&s.newest[is_value][d]) = items;
      if (slot >= 0) *reinterpret_cast<Items*>(cache + d) = items;
    });
  }
};

}  // namespace qinfer::cuda::decoding
