// What a step brings of a sequence's newest token: queries, key and value, as the product left
// them.
#pragma once
#include "decode_shared.cuh"

namespace qinfer::cuda::decoding {

template <class T, Format F, int D>
struct Token {
  using S = Shared<T, F, D>;
  using Raw = typename S::Raw;

  const Arguments& a;
  const Decode& p;
  S& s;
  const int warp = threadIdx.x / 32, token = blockIdx.z;
  int kv, first_head, group;
  // What does not come from the kernel before. All of it is asked for before anything is waited
  // for, as each answer takes long while the card reads the product's weights.
  const int length;
  const int64_t slot, position;
  Head<D> cos, sin, q_norm, k_norm;
  float query_scale = 1, static_scales[2] = {1, 1};

  __device__ __forceinline__ Token(const Arguments& arguments, S& shared)
      : a(arguments),
        p(arguments.d),
        s(shared),
        length(p.lengths[token]),
        slot(p.slots[token]),
        position(p.positions[token]) {
    const int each = a.heads / a.kv_heads;
    kv = blockIdx.y / a.groups;
    const int part = blockIdx.y % a.groups;
    first_head = kv * each + part * kHeads;
    group = min(kHeads, each - part * kHeads);
  }

  __device__ __forceinline__ void know() {
    cos = Head<D>::read(p.rotary + position * 2 * D);
    sin = Head<D>::read(p.rotary + position * 2 * D + D);
    if (p.q_norm) q_norm = Head<D>::read(static_cast<const T*>(p.q_norm));
    if (p.k_norm) k_norm = Head<D>::read(static_cast<const T*>(p.k_norm));
    if (p.query_scale) query_scale = number(static_cast<const T*>(p.query_scale)[position]);
    if (p.is_static) static_scales[0] = p.key_scales[kv], static_scales[1] = p.value_scales[kv];
  }

  // Of this warp: its queries, and the newest key and value if it has those. Read in one go.
  struct Fetched {
    Head<D> queries[kHeads / kWarps], key, value;
  };
  __device__ __forceinline__ Fetched fetch(bool has_newest) const {
    Fetched f = {};
#pragma unroll
    for (int i = 0; i < kHeads / kWarps; ++i)
      if (i * kWarps + warp < group) f.queries[i] = head_of(first_head + i * kWarps + warp);
    if (has_newest) f.key = head_of(a.heads + kv), f.value = head_of(a.heads + a.kv_heads + kv);
    return f;
  }

  // Normalised and rotated, into shared memory.
  __device__ __forceinline__ void queries(Fetched& f) const {
#pragma unroll
    for (int i = 0; i < kHeads / kWarps; ++i) {
      if (p.q_norm) f.queries[i].template normalise<T>(q_norm, p.eps);
      f.queries[i].rotate(cos, sin);
      T* to = s.queries[i * kWarps + warp];
      f.queries[i].each([&](int d, float x) { to[d] = T(x * query_scale); });
    }
  }

  // The newest key and value, into the cache and as number `row` of those this warp holds.
  __device__ __forceinline__ void newest(Fetched& f, int stage, int row) const {
    if (p.k_norm) f.key.template normalise<T>(k_norm, p.eps);
    f.key.rotate(cos, sin);
    keep(f.key, 0, p.keys, p.key_scales, s.keys[warp][stage], stage, row, Raw::keys);
    keep(f.value, 1, p.values, p.value_scales, s.values[warp][stage], stage, row, Raw::values);
    __syncwarp();
  }

 private:
  __device__ __forceinline__ Head<D> head_of(int head) const {
    const auto* qkv = static_cast<const T*>(p.qkv);
    return Head<D>::read(qkv + (int64_t(token) * (a.heads + 2 * a.kv_heads) + head) * D);
  }

  template <class At>
  __device__ __forceinline__ void keep(const Head<D>& h, int which, void* cache, float* scales,
                                       uint4* held, int stage, int row, At at) const {
    using Item = typename Stored<T, F>::Item;
    const int64_t to = slot * a.kv_heads + kv;
    const float scale = p.is_static ? static_scales[which] : scale_of<T, F>(h);
    if (F != Format::kPlain && threadIdx.x % 32 == 0) {
      s.scales[warp][stage][which][row] = scale;
      if (slot >= 0 && !p.is_static) scales[to] = scale;
    }
    h.each([&](int d, float x) {
      constexpr int kEach = 16 / sizeof(Item);
      const Item item = Stored<T, F>::pack(x / scale);
      reinterpret_cast<Item*>(held + at(row, d / kEach))[d % kEach] = item;
      if (slot >= 0) static_cast<Item*>(cache)[to * D + d] = item;
    });
  }
};

}  // namespace qinfer::cuda::decoding
