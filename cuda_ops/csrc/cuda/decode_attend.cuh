// Attention of a warp to its keys, sixteen at a time: how they come from the cache, how the newest
// one gets into it, and the matrix instructions, whose rows are the heads that share a KV head.
#pragma once
#include "decode_shared.cuh"

namespace qinfer::cuda::decoding {

template <class T, Format F, int D>
struct Attend {
  using S = Shared<T, F, D>;
  using Raw = typename S::Raw;
  static constexpr int kNumbers = Stored<T, F>::kNumbers, kWords = kNumbers / 2;
  static constexpr int kSteps = (Raw::kChunks + 3) / 4;

  const Arguments& a;
  const Decode& p;
  S& s;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  int token, kv, first_head, group, length, begin, last_turn, worker, workers;
  float sums[D / 8][4] = {};
  float most[2] = {-1e30f, -1e30f}, total[2] = {};
  uint32_t query[kSteps][2][kWords];

  __device__ Attend(const Arguments& arguments, S& shared)
      : a(arguments), p(arguments.d), s(shared) {
    token = blockIdx.z;
    const int each = a.heads / a.kv_heads;
    kv = blockIdx.y / a.groups;
    const int part = blockIdx.y % a.groups;
    first_head = kv * each + part * kHeads;
    group = min(kHeads, each - part * kHeads);
  }

  // This warp's key number i of turn `turn`.
  __device__ __forceinline__ int position(int turn, int i) const {
    return begin + (turn * workers + worker) * kKeys + i;
  }

  __device__ __forceinline__ void load(int turn) const {
    const int stage = turn % kStages;
    const int mine = position(turn, lane % kKeys);
    // the newest key is not there yet
    const bool is_old = mine >= first_visible() && mine < length - 1;
    int slot = -1;
    if (is_old) {
      const int32_t* table = p.tables + int64_t(token) * a.width;
      slot = table[mine / a.block_size] * a.block_size + mine % a.block_size;
    }
#pragma unroll
    for (int i = 0; i < kKeys * Raw::kChunks; i += 32) {
      const int row = (i + lane) / Raw::kChunks, chunk = (i + lane) % Raw::kChunks;
      const int from = __shfl_sync(0xffffffffu, slot, row % kKeys);
      if (row >= kKeys) continue;
      const int64_t at = ((int64_t(max(from, 0)) * a.kv_heads + kv) * Raw::kChunks + chunk) * 16;
      copy16(&s.keys[warp][stage][Raw::keys(row, chunk)], static_cast<const char*>(p.keys) + at,
             from >= 0);
      copy16(&s.values[warp][stage][Raw::values(row, chunk)],
             static_cast<const char*>(p.values) + at, from >= 0);
    }
    if constexpr (F != Format::kPlain) {
      const float* scales = lane < kKeys ? p.key_scales : p.value_scales;
      copy4(&s.scales[warp][stage][lane / kKeys][lane % kKeys],
            scales + (p.is_static ? 0 : int64_t(max(slot, 0)) * a.kv_heads) + kv, slot >= 0);
    }
  }

  __device__ __forceinline__ int first_visible() const {
    return p.window ? max(length - p.window, 0) : 0;
  }

  // Of this token, as the product left it.
  __device__ __forceinline__ Head<D> head_of(int head) const {
    const auto* qkv = static_cast<const T*>(p.qkv);
    return Head<D>::read(qkv + (int64_t(token) * (a.heads + 2 * a.kv_heads) + head) * D);
  }

  // What does not come from the kernel before.
  struct Known {
    Head<D> cos, sin, q_norm, k_norm;
    float query_scale = 1;
  };
  __device__ __forceinline__ Known known() const {
    Known k;
    const int64_t at = p.positions[token];
    k.cos = Head<D>::read(p.rotary + at * 2 * D);
    k.sin = Head<D>::read(p.rotary + at * 2 * D + D);
    if (p.q_norm) k.q_norm = Head<D>::read(static_cast<const T*>(p.q_norm));
    if (p.k_norm) k.k_norm = Head<D>::read(static_cast<const T*>(p.k_norm));
    if (p.query_scale) k.query_scale = number(static_cast<const T*>(p.query_scale)[at]);
    return k;
  }

  // What is read of the product, in one go: this warp's queries, and the newest key and value.
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

  __device__ __forceinline__ void queries(Fetched& f, const Known& known) {
#pragma unroll
    for (int i = 0; i < kHeads / kWarps; ++i) {
      if (p.q_norm) f.queries[i].template normalise<T>(known.q_norm, p.eps);
      f.queries[i].rotate(known.cos, known.sin);
      T* to = s.queries[i * kWarps + warp];
      f.queries[i].each([&](int d, float x) { to[d] = T(x * known.query_scale); });
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int upper = 0; upper < 2; ++upper)
#pragma unroll
        for (int i = 0; i < kWords; i += 4) {
          const int at = (step * 4 + t) * kNumbers + i * 2;
          uint4 v = {};
          if (at < D) v = *reinterpret_cast<const uint4*>(&s.queries[g + upper * 8][at]);
          uint32_t(&to)[kWords] = query[step][upper];
          to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
  }

  // The newest key or value, into the cache and among the sixteen that this warp holds.
  template <class At>
  __device__ __forceinline__ void keep(const Head<D>& h, void* cache, float* scales, uint4* held,
                                       float* held_scale, int row, At at) const {
    using Item = typename Stored<T, F>::Item;
    const int64_t slot = p.slots[token] * a.kv_heads + kv;
    const float scale = p.is_static ? scales[kv] : scale_of<T, F>(h);
    if (F != Format::kPlain && lane == 0) {
      held_scale[row] = scale;
      if (slot >= 0 && !p.is_static) scales[slot] = scale;
    }
    h.each([&](int d, float x) {
      constexpr int kEach = 16 / sizeof(Item);
      const Item item = Stored<T, F>::pack(x / scale);
      reinterpret_cast<Item*>(held + at(row, d / kEach))[d % kEach] = item;
      if (slot >= 0) static_cast<Item*>(cache)[slot * D + d] = item;
    });
  }

  __device__ __forceinline__ void newest(Fetched& f, const Known& known, int turn) const {
    const int row = (length - 1 - begin) % kKeys, stage = turn % kStages;
    if (p.k_norm) f.key.template normalise<T>(known.k_norm, p.eps);
    f.key.rotate(known.cos, known.sin);
    keep(f.key, p.keys, p.key_scales, s.keys[warp][stage], s.scales[warp][stage][0], row,
         Raw::keys);
    keep(f.value, p.values, p.value_scales, s.values[warp][stage], s.scales[warp][stage][1], row,
         Raw::values);
    __syncwarp();
  }

  __device__ __forceinline__ void look(int turn) {
    const int stage = turn % kStages;
    float scores[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int chunk = step * 4 + t;
        uint4 key = {};
        if (chunk < Raw::kChunks) key = s.keys[warp][stage][Raw::keys(n * 8 + g, chunk)];
#pragma unroll
        for (int i = 0; i < kNumbers / 4; ++i) {
          uint32_t low, high;
          operands<T, F>(key, i, low, high);
          const uint32_t rows[4] = {query[step][0][2 * i], query[step][1][2 * i],
                                    query[step][0][2 * i + 1], query[step][1][2 * i + 1]};
          multiply<T>(scores[n], rows, low, high);
        }
      }
    soften(turn, stage, scores);
    const uint32_t weights[4] = {
        pack<T>(scores[0][0], scores[0][1]), pack<T>(scores[0][2], scores[0][3]),
        pack<T>(scores[1][0], scores[1][1]), pack<T>(scores[1][2], scores[1][3])};
    mix(stage, weights);
  }

  // Scores become weights; what has been summed up so far is brought to the new largest score.
  __device__ __forceinline__ void soften(int turn, int stage, float (&scores)[2][4]) {
    const float* scales = s.scales[warp][stage][0];
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = n * 8 + t * 2 + i % 2, at = position(turn, key);
        const float scale = p.scale * (F == Format::kPlain ? 1.0f : scales[key]);
        scores[n][i] = at >= first_visible() && at < length ? scores[n][i] * scale : -1e30f;
      }
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      float top = most[upper];
#pragma unroll
      for (int n = 0; n < 2; ++n)
        top = fmaxf(top, fmaxf(scores[n][upper * 2], scores[n][upper * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float old = power2(most[upper] - top);
      most[upper] = top, total[upper] *= old;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) sums[n][upper * 2] *= old, sums[n][upper * 2 + 1] *= old;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = upper * 2; i < upper * 2 + 2; ++i) {
          const float weight = scores[n][i] > -1e30f ? power2(scores[n][i] - top) : 0.0f;
          total[upper] += weight;
          const float scale = F == Format::kPlain ? 1.0f : scales[kKeys + n * 8 + t * 2 + i % 2];
          scores[n][i] = weight * scale;
        }
    }
  }

  __device__ __forceinline__ void mix(int stage, const uint32_t (&weights)[4]) {
    const void* from = s.values[warp][stage];
    if constexpr (F != Format::kPlain) {
      widen(stage);
      from = s.wide[warp];
    }
    using Wide = Rows<D * 2>;
    const int row = lane % 16, chunk = lane / 16;
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      uint32_t b[4];
      const uint4* at = static_cast<const uint4*>(from) + Wide::values(row, n + chunk);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                   : "r"(shared_address(at)));
      multiply<T>(sums[n], weights, b[0], b[1]);
      multiply<T>(sums[n + 1], weights, b[2], b[3]);
    }
  }

  // Values of eight bits as 16-bit numbers, which can be read in columns.
  __device__ __forceinline__ void widen(int stage) const {
    using Wide = Rows<D * 2>;
    auto* to = reinterpret_cast<uint4*>(s.wide[warp]);
    __syncwarp();
#pragma unroll
    for (int i = lane; i < kKeys * Raw::kChunks; i += 32) {
      const int row = i / Raw::kChunks, chunk = i % Raw::kChunks;
      const uint4 v = s.values[warp][stage][Raw::values(row, chunk)];
      uint32_t w[8];
#pragma unroll
      for (int j = 0; j < 4; ++j) operands<T, F>(v, j, w[2 * j], w[2 * j + 1]);
      to[Wide::values(row, chunk * 2)] = {w[0], w[1], w[2], w[3]};
      to[Wide::values(row, chunk * 2 + 1)] = {w[4], w[5], w[6], w[7]};
    }
    __syncwarp();
  }

  __device__ __forceinline__ void share(float* mine) const {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int h = g + upper * 8;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<float2*>(mine + h * (D + 2) + n * 8 + t * 2) = {sums[n][upper * 2],
                                                                          sums[n][upper * 2 + 1]};
      float all = total[upper];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      if (t == 0) mine[h * (D + 2) + D] = most[upper], mine[h * (D + 2) + D + 1] = all;
    }
  }
};

}  // namespace qinfer::cuda::decoding
