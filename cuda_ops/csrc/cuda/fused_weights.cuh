// The weights of a product of very few rows: streamed through shared memory, multiplied by inputs
// that are there already.
#pragma once
#include "async.cuh"
#include "weights.cuh"

namespace qinfer::cuda {

// W warps, R times eight channels, S copies of sixteen bytes of each channel on their way, B blocks
// on a multiprocessor. Gated: the parts are gates and what they let pass, by turns.
template <int W, int R, int S, int B, bool Gated>
struct Plan {
  static constexpr int kW = W, kR = R, kS = S, kB = B, kThreads = W * 32;
  static constexpr bool kGated = Gated;
  static constexpr int kPairs = (R + 1) / 2;  // parts that a matrix instruction takes together
  static constexpr int kSums = W * kPairs * 128;
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
};

// What instructions multiply: quantised weights become float16, as that takes the fewest steps.
template <Format F>
using Inner = std::conditional_t<F == Format::kPlain, BF16, F16>;

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
  static constexpr int kNumbers = Held<F>::kNumbers, kWords = kNumbers / 2;
  static constexpr int kStep = 4 * kNumbers;  // inputs that one load of four threads covers

  const Arguments& p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int steps, pitch;  // of the inputs in shared memory, numbers
  const int turns;         // of this warp for a tile
  const int row_bytes;
  uint4* ring;   // [S][R][threads]
  float* sums;   // [2][W][pairs][4][32]
  float* found;  // [W][4]: sum of squares, largest magnitude, sum of the rounded inputs
  M* inputs;     // [rows][pitch]

  __device__ Stream(const Arguments& arguments, uint8_t* shared)
      : p(arguments),
        steps(steps_of(p.in)),
        pitch(pitch_of(p.in)),
        turns((steps - warp + P::kW - 1) / P::kW),
        row_bytes(F == Format::kPlain ? p.in * 2 : p.in) {
    ring = reinterpret_cast<uint4*>(shared);
    sums = reinterpret_cast<float*>(ring + P::kS * P::kR * P::kThreads);
    found = sums + 2 * P::kSums;
    inputs = reinterpret_cast<M*>(found + 4 * P::kW);
    open(blockIdx.x);
  }

  static __host__ __device__ int steps_of(int in) { return (in + kStep - 1) / kStep; }
  // Sixteen bytes more than the steps: rows begin in other banks.
  static __host__ __device__ int pitch_of(int in) { return steps_of(in) * kStep + 8; }
  static size_t shared_bytes(int rows, int in) {
    return sizeof(uint4) * P::kS * P::kR * P::kThreads +
           sizeof(float) * (2 * P::kSums + 4 * P::kW) + sizeof(M) * rows * pitch_of(in);
  }

  // The first channel of part r of a tile.
  __device__ __forceinline__ int channels(int tile, int r) const {
    if constexpr (P::kGated) return (tile * (P::kR / 2) + r / 2) * 8 + r % 2 * (p.out / 2);
    return (tile * P::kR + r) * 8;
  }
  __device__ __forceinline__ int clamped(int channel) const { return min(channel, p.out - 1); }

  // Asks for this warp's next turn of every channel, if there is one.
  __device__ __forceinline__ void load() {
    if (next_turn == turns) open(next_tile + gridDim.x);
    if (next_tile < p.tiles && turns) {
      const int step = next_turn * P::kW + warp, offset = step * 64 + t * 16;
      uint4* to = ring + next_slot * (P::kR * P::kThreads) + threadIdx.x;
#pragma unroll
      for (int r = 0; r < P::kR; ++r)
        copy16(to + r * P::kThreads, from[r] + offset, offset < row_bytes);
      ++next_turn;
      next_slot = next_slot + 1 == P::kS ? 0 : next_slot + 1;
    }
    commit();
  }

  // This warp's share of a tile's sums.
  __device__ __forceinline__ void run(int& slot, float (&to)[P::kPairs][4]) {
    for (int i = 0; i < turns; ++i) {
      wait_for_copies<P::kS - 1>();
      __syncwarp();
      const int step = i * P::kW + warp;
      uint32_t words[kWords];
      words_of(step, words);
      const uint4* held = ring + slot * (P::kR * P::kThreads) + threadIdx.x;
#pragma unroll
      for (int q = 0; q < P::kPairs; ++q) {
        const uint4 one = held[q * 2 * P::kThreads];
        const uint4 other = P::kR > 1 ? held[(q * 2 + 1) * P::kThreads] : uint4{};
        add(one, other, words, to[q]);
      }
      __syncwarp();
      slot = slot + 1 == P::kS ? 0 : slot + 1;
      load();
    }
  }

 private:
  const uint8_t* from[P::kR];
  int next_tile, next_turn = 0, next_slot = 0;

  __device__ __forceinline__ void open(int tile) {
    next_tile = tile, next_turn = 0;
#pragma unroll
    for (int r = 0; r < P::kR; ++r)
      from[r] = p.weight + int64_t(clamped(channels(tile, r) + g)) * row_bytes;
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
