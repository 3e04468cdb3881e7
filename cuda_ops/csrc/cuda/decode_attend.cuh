// Attention of a warp to its keys, sixteen at a time: how they come from the cache, and the matrix
// instructions, whose rows are the heads that share a KV head.
#pragma once
#include "decode_token.cuh"

namespace qinfer::cuda::decoding {

template <class T, Format F, int D>
struct Attend {
  using S = Shared<T, F, D>;
  using Raw = typename S::Raw;
  static constexpr int kNumbers = Stored<T, F>::kNumbers, kWords = kNumbers / 2;
  static constexpr int kSteps = (Raw::kChunks + 3) / 4;

  const Token<T, F, D>& token;
  S& s;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int length, first_visible, begin;
  const int turns;  // of all warps together
  int worker, workers;
  float sums[D / 8][4] = {};
  float most[2] = {-1e30f, -1e30f}, total[2] = {};
  uint32_t query[kSteps][2][kWords];

  __device__ __forceinline__ explicit Attend(const Token<T, F, D>& of)
      : token(of),
        s(of.s),
        length(of.length),
        first_visible(of.p.window ? max(length - of.p.window, 0) : 0),
        begin(first_visible / kKeys * kKeys),
        turns((length - begin + kKeys - 1) / kKeys) {}

  // This warp's key number i of turn `turn`.
  __device__ __forceinline__ int position(int turn, int i) const {
    return begin + (turn * workers + worker) * kKeys + i;
  }

  // Where in the cache this lane's key of a turn is; -1 for none, and the newest, which is not
  // there yet.
  __device__ __forceinline__ int place(int turn) const {
    const int mine = position(turn, lane % kKeys);
    if (mine < first_visible || mine >= length - 1) return -1;
    const int size = token.a.block_size;
    const int32_t* table = token.p.tables + int64_t(token.token) * token.a.width;
    return table[mine / size] * size + mine % size;
  }

  __device__ __forceinline__ void load(int turn, int slot) const {
    const int stage = turn % kStages, kv_heads = token.a.kv_heads, kv = token.kv;
    const Decode& p = token.p;
#pragma unroll
    for (int i = 0; i < kKeys * Raw::kChunks; i += 32) {
      const int row = (i + lane) / Raw::kChunks, chunk = (i + lane) % Raw::kChunks;
      const int from = __shfl_sync(0xffffffffu, slot, row % kKeys);
      if (row >= kKeys) continue;
      const int64_t at = ((int64_t(max(from, 0)) * kv_heads + kv) * Raw::kChunks + chunk) * 16;
      copy16(&s.keys[warp][stage][Raw::keys(row, chunk)], static_cast<const char*>(p.keys) + at,
             from >= 0);
      copy16(&s.values[warp][stage][Raw::values(row, chunk)],
             static_cast<const char*>(p.values) + at, from >= 0);
    }
    if constexpr (F != Format::kPlain) {
      const float* scales = lane < kKeys ? p.key_scales : p.value_scales;
      copy4(&s.scales[warp][stage][lane / kKeys][lane % kKeys],
            scales + (p.is_static ? 0 : int64_t(max(slot, 0)) * kv_heads) + kv, slot >= 0);
    }
  }

  // All heads' queries, as matrix instructions take them.
  __device__ __forceinline__ void take_queries() {
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
        const float scale = token.p.scale * (F == Format::kPlain ? 1.0f : scales[key]);
        scores[n][i] = at >= first_visible && at < length ? scores[n][i] * scale : -1e30f;
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

  __device__ __forceinline__ void share(Part<D>& mine) const {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int h = g + upper * 8;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<float2*>(&mine.sums[h][n * 8 + t * 2]) = {sums[n][upper * 2],
                                                                    sums[n][upper * 2 + 1]};
      float all = total[upper];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      if (t == 0) mine.most[h] = most[upper], mine.total[h] = all;
    }
  }
};

}  // namespace qinfer::cuda::decoding
