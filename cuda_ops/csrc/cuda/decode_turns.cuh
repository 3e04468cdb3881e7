// Which keys a warp looks at, and where in the cache they are.
#pragma once
#include "cluster.cuh"
#include "decode_shared.cuh"

namespace qinfer::cuda::decoding {

// Keys are dealt out to the warps of all clusters that work on a sequence, sixteen at a time: a
// cluster's warps have a round of them, then the next cluster's.
template <class P>
struct Turns {
  const Arguments& a;
  const int lane = threadIdx.x % 32, token = blockIdx.z;
  const int rank = cluster_rank(), bits;  // the cluster's size is 2^bits
  const int cluster, own = rank * P::kWarps + threadIdx.x / 32, round;
  int length, first_visible, begin;
  int used;   // clusters
  int entry;  // of the block table, for this lane's key of the first two turns

  // What is looked up is asked for in one go, as each answer takes long while the card reads the
  // product's weights: the entry before it is known whether it is the right one.
  __device__ __forceinline__ explicit Turns(const Arguments& arguments)
      : a(arguments), bits(cluster_bits()), cluster(blockIdx.x >> bits), round(P::kWarps << bits) {
    length = a.d.lengths[token];
    const int guess = look_up(a.block_size((lane / kKeys * round + own) * kKeys + lane % kKeys));
    first_visible = a.d.window ? max(length - a.d.window, 0) : 0;
    begin = first_visible & -kKeys;
    constexpr int kBits = P::kBits + kTurnBits;
    used = count() <= round * P::kAlone ? 1 : min((count() - 1 >> bits + kBits) + 1, a.chunks);
    entry = used == 1 && begin == 0 ? guess : -1;
  }

  // This warp's key number i of turn `turn`.
  __device__ __forceinline__ int position(int turn, int i) const {
    return begin + ((turn * used + cluster) * round + own) * kKeys + i;
  }
  __device__ __forceinline__ bool has(int turn) const { return position(turn, 0) < length; }
  __device__ __forceinline__ bool sees(int position) const {
    return position >= first_visible && position < length;
  }
  // Whether the newest key is one of this block's.
  __device__ __forceinline__ bool has_newest() const {
    const int last = count() - 1, in_round = last & (round - 1);
    return last >= 0 && in_round / P::kWarps == rank &&
           (used == 1 || (last >> bits + P::kBits) % used == cluster);
  }

  // Where in the cache this lane's key of turn `turn` or, in the upper half of the warp, of the
  // next one is; -1 for none, and the newest, which is not there yet.
  __device__ __forceinline__ int place(int turn, int known = -1) const {
    const int at = position(turn + lane / kKeys, lane % kKeys), block = a.block_size(at);
    if (!sees(at) || at == length - 1) return -1;
    const int found = known >= 0 ? known : look_up(block);
    return (found - block) * int(a.block_size.value) + at;
  }

 private:
  // Turns of all warps together.
  __device__ __forceinline__ int count() const { return (length - begin + kKeys - 1) / kKeys; }
  __device__ __forceinline__ int look_up(int block) const {
    return a.d.tables[int64_t(token) * a.width + min(block, a.width - 1)];
  }
};

}  // namespace qinfer::cuda::decoding
