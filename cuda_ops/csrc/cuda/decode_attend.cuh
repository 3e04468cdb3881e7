// Attention of a warp to its keys, sixteen at a time: how they come from the cache, and the matrix
// instructions, whose rows are keys, then the numbers of values, and whose columns are the heads
// that share a KV head.
#pragma once
#include "decode_turns.cuh"

namespace qinfer::cuda::decoding {

// Sixteen bits of a matrix of eight rows and columns in each half of a lane's word, its row lane /
// 4: turned over.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(x));
  return x;
}

template <class T, Format F, int D, class P>
struct Attend {
  using S = Shared<T, F, D, P>;
  using Raw = typename S::Raw;
  static constexpr int kNumbers = Stored<T, F>::kNumbers, kWords = kNumbers / 2;
  static constexpr int kSteps = (Raw::kChunks + 3) / 4;
  static constexpr bool kPlain = F == Format::kPlain;

  const Turns<P>& turns;
  const Arguments& a;
  S& s;
  const int kv;  // head
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  float sums[D / 16][4] = {};  // numbers g and g + 8 of sixteen of values, heads 2 t and 2 t + 1
  float most[2] = {-1e30f, -1e30f}, total[2] = {};  // of those heads
  uint32_t query[kSteps][kWords];                   // of head g
  int places;                                       // of two turns' keys

  __device__ __forceinline__ Attend(const Turns<P>& of, S& shared, int kv_head)
      : turns(of), a(of.a), s(shared), kv(kv_head), places(of.place(0, of.entry)) {}

  // Asks for the first turns' keys and values.
  __device__ __forceinline__ void start() {
#pragma unroll 1
    for (int turn = 0; turn < kStages; ++turn) {
      if (turns.has(turn)) load(turn);
      commit();
    }
  }

  // All heads' queries, as matrix instructions take them. Columns without a head hold anything, and
  // nothing of them is used.
  __device__ __forceinline__ void take_queries() {
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const int at = (step * 4 + t) * kNumbers + i * 2;
        uint4 v = {};
        if (at < D) v = *reinterpret_cast<const uint4*>(&s.queries[g][at]);
        uint32_t(&to)[kWords] = query[step];
        to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
      }
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (int turn = 0; turns.has(turn); ++turn) {
      wait_for_copies<kStages - 1>();
      __syncwarp();
      if (!turns.has(turn + 1)) add_newest(turn);
      look(turn);
      __syncwarp();
      const int next = turn + kStages;
      if (turns.has(next)) {
        if (next % 2 == 0) places = turns.place(next);
        load(next);
      }
      commit();
    }
    wait_for_copies<0>();
    __syncwarp();
  }

  // Into this warp's memory, whose keys have been looked at.
  __device__ __forceinline__ void share() const {
    Part<D>& part = s.held[warp].part;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* to = part.sums[2 * t + h];
#pragma unroll
      for (int n = 0; n < D / 16; ++n)
        to[n * 16 + g] = sums[n][h], to[n * 16 + 8 + g] = sums[n][2 + h];
      float all = total[h];
#pragma unroll
      for (int d = 4; d < 32; d *= 2) all += __shfl_xor_sync(0xffffffffu, all, d);
      if (g == 0) part.rest[2 * t + h] = {most[h], all};
    }
  }

 private:
  __device__ __forceinline__ void load(int turn) const {
    constexpr int kRows = 32 / Raw::kChunks;                     // at a time
    const int stage = turn % kStages, lanes = turn % 2 * kKeys;  // those that know the places
    const int chunk = lane % Raw::kChunks, kv_heads = a.kv_heads;
    const Decode& p = a.d;
#pragma unroll 1
    for (int row = lane / Raw::kChunks; row < kKeys + lane / Raw::kChunks; row += kRows) {
      const int from = __shfl_sync(0xffffffffu, places, lanes + row % kKeys);
      if (row >= kKeys) continue;
      const int64_t at = ((int64_t(max(from, 0)) * kv_heads + kv) * Raw::kChunks + chunk) * 16;
      copy16(&s.held[warp].keys[stage][Raw::keys(row, chunk)],
             static_cast<const char*>(p.keys) + at, from >= 0);
      copy16(&s.held[warp].values[stage][Raw::values(row, chunk)],
             static_cast<const char*>(p.values) + at, from >= 0);
    }
    if constexpr (!kPlain) {
      const int slot = __shfl_sync(0xffffffffu, places, lanes + lane % kKeys);
      const float* scales = either(lane >= kKeys, p.key_scales, p.value_scales);
      copy4(&s.scales[warp][stage][lane / kKeys][lane % kKeys],
            scales + (p.is_static ? 0 : int64_t(max(slot, 0)) * kv_heads) + kv, slot >= 0);
    }
  }

  // The newest key and value to the others of this warp's last turn, if they belong there.
  __device__ __forceinline__ void add_newest(int turn) const {
    const int stage = turn % kStages, row = turns.length - 1 - turns.position(turn, 0);
    if (row >= kKeys) return;
    const auto* newest = reinterpret_cast<const uint4*>(s.newest[0]);
    if (lane < Raw::kChunks) {
      s.held[warp].keys[stage][Raw::keys(row, lane)] = newest[lane];
      s.held[warp].values[stage][Raw::values(row, lane)] = newest[Raw::kChunks + lane];
    }
    if (!kPlain && lane < 2) s.scales[warp][stage][lane][row] = s.newest_scales[lane];
    __syncwarp();
  }

  __device__ __forceinline__ void look(int turn) {
    const int stage = turn % kStages;
    const uint4* keys = s.held[warp].keys[stage];
    float chains[2][4] = {};  // of sums, as each step of one waits for the one before
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int chunk = step * 4 + t;
      uint4 low = {}, high = {};
      if (chunk < Raw::kChunks)
        low = keys[Raw::keys(g, chunk)], high = keys[Raw::keys(g + 8, chunk)];
#pragma unroll
      for (int i = 0; i < kNumbers / 4; ++i) {
        uint32_t rows[4];
        operands<T, F>(low, i, rows[0], rows[2]);
        operands<T, F>(high, i, rows[1], rows[3]);
        multiply<T>(chains[i % 2], rows, query[step][2 * i], query[step][2 * i + 1]);
      }
    }
    float scores[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] = chains[0][i] + chains[1][i];
    soften(turn, stage, scores);
    mix(stage, transposed(pack<T>(scores[0], scores[1])),
        transposed(pack<T>(scores[2], scores[3])));
  }

  // Scores, of keys g and g + 8 and heads 2 t and 2 t + 1, become weights; what has been summed up
  // so far is brought to the new largest score.
  __device__ __forceinline__ void soften(int turn, int stage, float (&scores)[4]) {
    const float* scales = s.scales[kPlain ? 0 : warp][stage][0];
    bool seen[2];
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int key = g + upper * 8;
      seen[upper] = turns.sees(turns.position(turn, key));
      const float scale = a.d.scale * (kPlain ? 1.0f : scales[key]);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        scores[upper * 2 + h] = seen[upper] ? scores[upper * 2 + h] * scale : -1e30f;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = fmaxf(most[h], fmaxf(scores[h], scores[2 + h]));
#pragma unroll
      for (int d = 4; d < 32; d *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
      const float old = power2(most[h] - top);
      most[h] = top, total[h] *= old;
#pragma unroll
      for (int n = 0; n < D / 16; ++n) sums[n][h] *= old, sums[n][2 + h] *= old;
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const float weight = seen[upper] ? power2(scores[upper * 2 + h] - top) : 0.0f;
        total[h] += weight;
        scores[upper * 2 + h] = weight * (kPlain ? 1.0f : scales[kKeys + g + upper * 8]);
      }
    }
  }

  // Weights of keys 2 t, 2 t + 1 and those 8 further on, of head g.
  __device__ __forceinline__ void mix(int stage, uint32_t low, uint32_t high) {
    const void* from = s.held[warp].values[stage];
    if constexpr (!kPlain) {
      widen(stage);
      from = s.wide[warp];
    }
    using Wide = Rows<D * 2>;
    const int row = lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t v[4];
      const uint4* at = static_cast<const uint4*>(from) + Wide::values(row, n * 2 + chunk);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                   : "r"(shared_address(at)));
      multiply<T>(sums[n], v, low, high);
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
      const uint4 v = s.held[warp].values[stage][Raw::values(row, chunk)];
      uint32_t w[8];
#pragma unroll
      for (int j = 0; j < 4; ++j) operands<T, F>(v, j, w[2 * j], w[2 * j + 1]);
      to[Wide::values(row, chunk * 2)] = {w[0], w[1], w[2], w[3]};
      to[Wide::values(row, chunk * 2 + 1)] = {w[4], w[5], w[6], w[7]};
    }
    __syncwarp();
  }
};

}  // namespace qinfer::cuda::decoding
