// Attention of 64 queries of one head to tiles of 64 keys, by mma.sync.
#pragma once
#include "async.cuh"
#include "attention.cuh"
#include "weights.cuh"

namespace qinfer::cuda::prompts {

constexpr int kWarps = 4, kThreads = kWarps * 32, kTile = 64;

__device__ __forceinline__ void load4(uint32_t (&r)[4], const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(from)));
}
__device__ __forceinline__ void load4_turned(uint32_t (&r)[4], const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(from)));
}

// A tile of 64 rows of D numbers; the chunks of eight in a row are swapped about, so that eight
// rows' chunks of one column lie in different banks.
template <class T, int D>
__device__ __forceinline__ T* chunk(T* tile, int row, int column) {
  return tile + row * D + ((column ^ (row & 7)) * 8);
}

template <class T, Format H, int D>
struct Prefill {
  const Heads& p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sequence, first, count, head, before;  // `before`: keys before the tile's first query
  float sum[D / 8][4] = {}, most[2] = {-1e30f, -1e30f}, total[2] = {};
  uint32_t query[D / 16][4];

  __device__ explicit Prefill(const Heads& heads) : p(heads) {}

  // Which queries this block has; false if none. Sequence s owns tiles from starts[s] / 64 + s.
  __device__ __forceinline__ bool find() {
    const int tile = gridDim.x - 1 - blockIdx.x;  // the longest first
    sequence = search(p.sequences, tile, [&](int s) { return p.starts[s] / kTile + s; });
    const int start = p.starts[sequence], end = p.starts[sequence + 1];
    first = start + (tile - start / kTile - sequence) * kTile;
    count = min(kTile, end - first);
    head = blockIdx.y;
    before = p.lengths[sequence] - (end - first);
    return count > 0;
  }

  __device__ __forceinline__ void fetch_queries(T* tile) {
    const T* from = static_cast<const T*>(p.queries);
    for (int i = threadIdx.x; i < kTile * D / 8; i += kThreads) {
      const int row = i / (D / 8), column = i % (D / 8);
      const int64_t at = (int64_t(first + min(row, count - 1)) * p.heads + head) * D + column * 8;
      copy16(chunk<T, D>(tile, row, column), from + at, row < count);
    }
  }

  __device__ __forceinline__ void fetch(T* tile, const void* cache, const float* scales, int key,
                                        int keys) {
    const int32_t* table = p.tables + int64_t(sequence) * p.width;
    const int kv = head / (p.heads / p.kv_heads);
    for (int i = threadIdx.x; i < kTile * D / 8; i += kThreads) {
      const int row = i / (D / 8), column = i % (D / 8);
      const int at = min(key + row, keys - 1);
      const int64_t slot = int64_t(table[at / p.block_size]) * p.block_size + at % p.block_size;
      const int64_t from = slot * p.kv_heads + kv;
      const bool inside = key + row < keys;
      T* to = chunk<T, D>(tile, row, column);
      if constexpr (H == Format::kPlain)
        copy16(to, static_cast<const T*>(cache) + from * D + column * 8, inside);
      else
        *reinterpret_cast<uint4*>(to) =
            inside ? scaled(static_cast<const uint8_t*>(cache) + from * D + column * 8,
                            scales[p.is_static ? kv : from])
                   : uint4{};
    }
  }

  // Eight numbers of a cache that holds them in eight bits.
  __device__ __forceinline__ uint4 scaled(const uint8_t* from, float scale) const {
    const uint2 bytes = *reinterpret_cast<const uint2*>(from);
    uint32_t words[4];
    if constexpr (H == Format::kInt8)
      from_int8<T>(bytes.x, words[0], words[1]), from_int8<T>(bytes.y, words[2], words[3]);
    else
      from_e4m3<T>(bytes.x, words[0], words[1]), from_e4m3<T>(bytes.y, words[2], words[3]);
    float numbers[8];
    unpack8<T>({words[0], words[1], words[2], words[3]}, numbers);
#pragma unroll
    for (int i = 0; i < 8; ++i) numbers[i] *= scale;
    return pack8<T>(numbers);
  }

  __device__ __forceinline__ void take_queries(T* tile) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      load4(query[k], chunk<T, D>(tile, warp * 16 + lane % 16, 2 * k + lane / 16));
  }

  __device__ __forceinline__ void scores(T* keys, float (&s)[8][4]) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        load4(b, chunk<T, D>(keys, n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        multiply<T>(s[2 * n], query[k], b[0], b[1]);
        multiply<T>(s[2 * n + 1], query[k], b[2], b[3]);
      }
  }

  // Scores to weights, with the running maximum; what was added up so far is scaled along.
  __device__ __forceinline__ void soften(float (&s)[8][4], int key) {
    const int row = warp * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int last = before + row + half * 8;  // the last key this row sees
      float top = most[half];
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[n][half * 2 + i];
          const int at = key + n * 8 + lane % 4 * 2 + i;
          x = at <= last && (!p.window || at > last - p.window) ? x * p.scale : -1e30f;
          top = fmaxf(top, x);
        }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float old = exp2f(most[half] - top);
      most[half] = top, total[half] *= old;
#pragma unroll
      for (int d = 0; d < D / 8; ++d) sum[d][half * 2] *= old, sum[d][half * 2 + 1] *= old;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[n][half * 2 + i];
          x = exp2f(x - top);
          total[half] += x;
        }
    }
  }

  __device__ __forceinline__ void mix(T* values, const float (&s)[8][4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t a[4] = {pack<T>(s[2 * k][0], s[2 * k][1]), pack<T>(s[2 * k][2], s[2 * k][3]),
                             pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                             pack<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        uint32_t b[4];
        load4_turned(b, chunk<T, D>(values, k * 16 + lane % 16, 2 * d + lane / 16));
        multiply<T>(sum[2 * d], a, b[0], b[1]);
        multiply<T>(sum[2 * d + 1], a, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void store() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = total[half];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const int row = warp * 16 + lane / 4 + half * 8;
      if (row >= count) continue;
      const float factor = all > 0 ? 1 / all : 0;  // no key: a sequence that is not there
      T* to = static_cast<T*>(p.out) + (int64_t(first + row) * p.heads + head) * D + lane % 4 * 2;
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
        *reinterpret_cast<uint32_t*>(to + d * 8) =
            pack<T>(sum[d][half * 2] * factor, sum[d][half * 2 + 1] * factor);
    }
  }
};

}  // namespace qinfer::cuda::prompts
