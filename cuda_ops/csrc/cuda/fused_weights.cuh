// The weights of a product of very few rows: streamed through shared memory, multiplied by inputs
// that are there already.
#pragma once
#include "async.cuh"
#include "fused_int4.cuh"

namespace qinfer::cuda {

constexpr int kFewRows = 2;  // with more, every block would make too many inputs

// W warps, R times eight channels, S copies of sixteen bytes of each channel on their way. Gated:
// the parts are gates and what they let pass, by turns. Split, int4 alone: inputs become digits.
template <int W, int R, int S, bool Gated, bool Split = false>
struct Plan {
  static constexpr int kW = W, kR = R, kS = S, kThreads = W * 32;
  static constexpr bool kGated = Gated, kSplit = Split;
  static constexpr int kParts = Gated ? 2 : 1, kTile = R / kParts * 8;  // results of a tile
  static constexpr int kPairs = (R + 1) / 2;  // parts that a matrix instruction takes together
  static constexpr int kShare = kPairs * 16 * kFewRows, kSums = W * kShare;  // of a warp, of all
};

struct Arguments {
  const BF16 *x, *residual, *norm;
  BF16* total;
  const uint8_t* weight;
  const float* scale;
  const BF16* bias;
  BF16* y;
  float eps;
  int rows, in, out;  // out: the weight's channels
  int tiles;
  bool is_late;  // the next kernel's blocks may start once this one's inputs are there
};

// What instructions multiply: weights of eight bits become float16, as that takes the fewest steps.
template <Format F>
using Inner = std::conditional_t<F == Format::kPlain || F == Format::kInt4, BF16, F16>;

// Numbers 4 i to 4 i + 3 of sixteen bytes, as instructions multiply them. int8 is 1152 too large,
// which is cheaper to take from the sums.
constexpr float kInt8Shift = 1152;
template <Format F>
__device__ __forceinline__ void shifted(const uint4& v, int i, uint32_t& low, uint32_t& high) {
  if constexpr (F == Format::kInt8) {
    const uint32_t bytes = word(v, i) ^ 0x80808080u;
    low = __byte_perm(bytes, 0x64646464u, 0x4140), high = __byte_perm(bytes, 0x64646464u, 0x4342);
  } else {
    operands<Inner<F>, F>(v, i, low, high);
  }
}

template <Format F, class P>
struct Stream {
  using M = Inner<F>;
  static constexpr bool kIsInt4 = F == Format::kInt4;
  static constexpr int kNumbers = Held<F>::kNumbers, kWords = kNumbers / 2;
  static constexpr int kStep = 4 * kNumbers;  // inputs that one load of four threads covers
  using Sums = std::conditional_t<P::kSplit, DigitSums, NumberSums>;  // int4

  const Arguments& p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int steps, pitch;  // of the inputs in shared memory, numbers
  const int most_turns;    // int4: a warp's steps lie together
  const int turns;         // of this warp for a tile
  const int row_bytes;
  uint4* ring;       // [S][R][threads]; a thread reads what it asked for itself
  float* sums;       // [2][W][pairs][16][rows]
  float* found;      // [W][4]: sum of squares, largest magnitude, sum of the rounded inputs
  M* zeros;          // [16]
  M* inputs;         // [rows][pitch]; split: GroupDigits[2 steps]
  GroupUnit* units;  // split: [2 steps]

  __device__ Stream(const Arguments& arguments, uint8_t* shared)
      : p(arguments),
        steps(steps_of(p.in)),
        pitch(pitch_of(p.in)),
        most_turns((steps + P::kW - 1) / P::kW),
        turns(kIsInt4 ? min(max(steps - warp * most_turns, 0), most_turns)
                      : (steps - warp + P::kW - 1) / P::kW),
        row_bytes(F == Format::kPlain ? p.in * 2
                  : kIsInt4           ? steps * 64
                                      : p.in) {
    ring = reinterpret_cast<uint4*>(shared);
    sums = reinterpret_cast<float*>(ring + P::kS * P::kR * P::kThreads);
    found = sums + 2 * P::kSums;
    zeros = reinterpret_cast<M*>(found + 4 * P::kW);
    inputs = zeros + 16;
    units = reinterpret_cast<GroupUnit*>(inputs + p.rows * pitch);
    if (threadIdx.x < 16) zeros[threadIdx.x] = M(0.0f);
    open(blockIdx.x);
  }

  static __host__ __device__ int steps_of(int in) { return (in + kStep - 1) / kStep; }
  // Sixteen bytes more than the steps: rows begin in other banks.
  static __host__ __device__ int pitch_of(int in) { return steps_of(in) * kStep + 8; }
  static size_t shared_bytes(int rows, int in) {
    return sizeof(uint4) * P::kS * P::kR * P::kThreads +
           sizeof(float) * (2 * P::kSums + 4 * P::kW) + sizeof(M) * (16 + rows * pitch_of(in)) +
           (P::kSplit ? sizeof(GroupUnit) * 2 * steps_of(in) : 0);
  }

  // The first channel of part r of a tile.
  __device__ __forceinline__ int channels(int tile, int r) const {
    if constexpr (P::kGated) return (tile * (P::kR / 2) + r / 2) * 8 + r % 2 * (p.out / 2);
    return (tile * P::kR + r) * 8;
  }
  __device__ __forceinline__ int clamped(int channel) const { return min(channel, p.out - 1); }
  static constexpr int kApart = kIsInt4 ? 1 : P::kW;  // steps between a warp's turns
  __device__ __forceinline__ int step_of(int turn) const {
    return (kIsInt4 ? warp * most_turns : warp) + turn * kApart;
  }

  // Asks for this warp's next turn of every channel, if there is one.
  __device__ __forceinline__ void load() {
    if (left == 0) open(next_tile + gridDim.x);
    if (next_tile < p.tiles && left) {
      uint4* to = ring + next_slot * (P::kR * P::kThreads) + threadIdx.x;
#pragma unroll
      for (int r = 0; r < P::kR; ++r)
        copy16_once(to + r * P::kThreads, from[r] + offset, offset < row_bytes);
      --left, offset += kApart * 64;
      next_slot = next_slot + 1 == P::kS ? 0 : next_slot + 1;
    }
    commit();
  }

  // This warp's share of a tile's sums: in lanes of t 0, rows 0 and 1 of each channel.
  __device__ __forceinline__ void run(int tile, int& slot, float (&to)[P::kPairs][4]) {
    if constexpr (kIsInt4)
      run_groups(tile, slot, to[0]);
    else
#pragma unroll 1
      for (int i = 0; i < turns; ++i) {
        uint32_t words[kWords];
        wait_for_copies<P::kS - 1>();
        words_of(step_of(i), words);
        const uint4* held = ring + slot * (P::kR * P::kThreads) + threadIdx.x;
#pragma unroll
        for (int q = 0; q < P::kPairs; ++q) {
          const uint4 one = held[q * 2 * P::kThreads];
          const uint4 other = P::kR > 1 ? held[(q * 2 + 1) * P::kThreads] : uint4{};
          add(one, other, words, to[q]);
        }
        pass(slot);
      }
  }

  __device__ __forceinline__ void share(const float (&from)[P::kPairs][4], float* to) const {
    if (t) return;
    to += warp * P::kShare + g * kFewRows;
#pragma unroll
    for (int q = 0; q < P::kPairs; ++q)
#pragma unroll
      for (int j = 0; j < 4; ++j) to[(q * 16 + j / 2 * 8) * kFewRows + j % 2] = from[q][j];
  }

  // int4, before its first tile.
  __device__ __forceinline__ void first_scales() {
    if constexpr (kIsInt4) load_scales(blockIdx.x, 0);
  }

 private:
  const uint8_t* from[P::kR];
  int next_tile, left, offset, next_slot = 0;  // turns of the tile, bytes of a channel
  float scales[2];                             // int4: of the two turns that come

  __device__ __forceinline__ void open(int tile) {
    next_tile = tile, left = turns, offset = step_of(0) * 64 + t * 16;
#pragma unroll
    for (int r = 0; r < P::kR; ++r)
      from[r] = p.weight + int64_t(clamped(channels(tile, r) + g)) * row_bytes;
  }

  __device__ __forceinline__ void pass(int& slot) {
    slot = slot + 1 == P::kS ? 0 : slot + 1;
    load();
  }

  // int4: two turns have four groups, which each have a scale and are scaled together.
  __device__ __forceinline__ void run_groups(int tile, int& slot, float (&to)[4]) {
#pragma unroll 1
    for (int first = 0; first < turns; first += 2) {
      const float now[2] = {scales[0], scales[1]};
      const bool is_last = first + 2 >= turns;
      load_scales(is_last ? tile + gridDim.x : tile, is_last ? 0 : first + 2);
      Sums sums(P::kSplit ? units[min(step_of(first) * 2 + t, steps * 2 - 1)] : GroupUnit{});
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (first + i >= turns) break;
        wait_for_copies<P::kS - 1>();
        const uint4* held = ring + slot * (P::kR * P::kThreads) + threadIdx.x;
        const int group = step_of(first + i) * 2;
        sums.add(held[0], held[P::kThreads], group_at(group, i * 2),
                 group_at(group + 1, i * 2 + 1));
        pass(slot);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) to[i * 2] += sums.of(i) * now[i];
    }
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
      to[0] += __shfl_xor_sync(0xffffffffu, to[0], d);
      to[2] += __shfl_xor_sync(0xffffffffu, to[2], d);
    }
  }

  // Of this lane's two channels, and the group of its place among the four from `turn` on.
  __device__ __forceinline__ void load_scales(int tile, int turn) {
    const int groups = p.in / 64, at = step_of(turn) * 2 + t;
    const bool is_there = turn + t / 2 < turns && at < groups;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* row = p.scale + int64_t(clamped(channels(tile, i) + g)) * groups;
      scales[i] = is_there ? load_scale(row + at) : 0.0f;
    }
  }

  // This lane's share of a group, or zeros where its row has another one's place.
  __device__ __forceinline__ const uint4* group_at(int group, int place) const {
    const int at = P::kSplit ? g % 2 * 4 + t : t * 2;  // of a group's 128 bytes
    const bool is_there = P::kSplit ? g / 2 == place : g == place * 2;
    return reinterpret_cast<const uint4*>(is_there ? inputs + group * 64 + at * 8 : zeros);
  }

  __device__ __forceinline__ void words_of(int step, uint32_t (&words)[kWords]) const {
    const M* row = inputs + min(g, p.rows - 1) * pitch + step * kStep;
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(row + t * kNumbers + i * 2);
      words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    }
  }

  __device__ __forceinline__ void add(const uint4& one, const uint4& other,
                                      const uint32_t (&words)[kWords], float (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < kNumbers / 4; ++i) {
      uint32_t a[4] = {};
      shifted<F>(one, i, a[0], a[2]);
      if (P::kR > 1) shifted<F>(other, i, a[1], a[3]);
      multiply<M>(to, a, words[2 * i], words[2 * i + 1]);
    }
  }
};

}  // namespace qinfer::cuda
