// Attention of prompts on Hopper: what a block computes, its shared memory, and the warp that fills
// it.
#pragma once
#include "attention.cuh"
#include "wgmma.cuh"

namespace qinfer::cuda {

constexpr int kKeys = 128;  // in a tile
constexpr int kStages = 2;
// 64 rows for each of so many warpgroups; a row is a query of one of the heads that share keys.
template <int D>
constexpr int kGroups = D == 64 ? 3 : 2;
template <int D>
constexpr int kRows = 64 * kGroups<D>;

struct Maps {
  CUtensorMap queries, keys, values;
};

template <class T, int D>
struct Shared {
  T queries[D / 64][kRows<D>][64];
  T keys[kStages][D / 64][kKeys][64];
  T values[kStages][D / 64][kKeys][64];
  uint64_t queries_here, keys_here[kStages], keys_read[kStages], values_here[kStages],
      values_read[kStages];
};

#ifdef QINFER_HOPPER

// What a block computes: queries `first` to first + count - 1 of a sequence for all heads of one
// KV head, and the tiles of keys they see, from the last to the first.
struct Work {
  int sequence, first, count, kv, group;
  int before;  // keys before the first query
  int last, low;
};

__device__ __forceinline__ bool find_work(const Heads& p, int rows, Work& w) {
  w.group = p.heads / p.kv_heads;
  const int each = rows / w.group;
  const int tile = gridDim.y - 1 - blockIdx.y;  // the longest first
  // sequence s owns tiles from starts[s] / each + s
  w.sequence = search(p.sequences, tile, [&](int s) { return p.starts[s] / each + s; });
  const int start = p.starts[w.sequence], end = p.starts[w.sequence + 1];
  w.first = start + (tile - start / each - w.sequence) * each;
  w.count = min(each, end - w.first);
  w.kv = blockIdx.x;
  w.before = p.lengths[w.sequence] - (end - w.first);
  w.last = (w.before + w.count - 1) / kKeys;
  w.low = p.window ? max(w.before + 1 - p.window, 0) / kKeys : 0;
  return w.count > 0;
}

template <class T, int D>
__device__ __forceinline__ void fetch_all(const Heads& p, const Maps& maps, const Work& w,
                                          Shared<T, D>& shared) {
  const int lane = threadIdx.x % 32;
  if (lane == 0) {
    const int each = kRows<D> / w.group;
    barrier_expect(&shared.queries_here, D / 64 * each * w.group * 128);
    for (int d = 0; d < D / 64; ++d)
      copy_box(shared.queries[d], &maps.queries, &shared.queries_here, d * 64, w.kv * w.group,
               w.first);
  }
  const int box = min(p.block_size, kKeys), boxes = kKeys / box * (D / 64);
  const int part = lane % (kKeys / box), d = lane / (kKeys / box);
  const int newest = w.before + w.count - 1;
  const int32_t* table = p.tables + int64_t(w.sequence) * p.width;
  int stage = 0, parity = 1;
  for (int tile = w.last; tile >= w.low; --tile) {
    // past the end: anything that is there
    const int key = min(tile * kKeys + part * box, newest / box * box);
    const int block = lane < boxes ? table[key / p.block_size] : 0, row = key % p.block_size;
    barrier_wait(&shared.keys_read[stage], parity);
    if (lane == 0) barrier_expect(&shared.keys_here[stage], kKeys * D * 2);
    __syncwarp();
    if (lane < boxes)
      copy_box(shared.keys[stage][d][part * box], &maps.keys, &shared.keys_here[stage], d * 64,
               w.kv, row, block);
    barrier_wait(&shared.values_read[stage], parity);
    if (lane == 0) barrier_expect(&shared.values_here[stage], kKeys * D * 2);
    __syncwarp();
    if (lane < boxes)
      copy_box(shared.values[stage][d][part * box], &maps.values, &shared.values_here[stage],
               d * 64, w.kv, row, block);
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
}

#endif

}  // namespace qinfer::cuda
