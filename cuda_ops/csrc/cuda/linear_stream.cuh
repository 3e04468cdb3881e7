// Weights that stream from memory into registers, and their products with few rows.
#pragma once
#include "weights.cuh"

namespace qinfer::cuda::streaming {

// A block computes R * 16 channels of N * 8 rows, its W warps sharing out the inputs, U loads of
// each channel at a time. Blocks that split the inputs of a channel between them were slower for
// every shape of Qwen2: putting their sums together costs 2 to 3 microseconds.
template <int N, int R, int W, int U>
struct Shape {
  static constexpr int kN = N, kR = R, kW = W, kU = U;
  static constexpr int kSums = N * R * 4 * 32;
};

struct Arguments {
  const void* x;
  const uint8_t* weight;
  const float* scale;
  const float* x_scale;
  const void* bias;
  void* y;
  int rows, in, out;
};

// What one thread has loaded of its channels.
template <Format F, class S>
struct Weights {
  uint4 numbers[S::kU][S::kR][2];
};
template <class S>
struct Weights<Format::kInt4, S> {
  uint4 numbers[S::kU][S::kR][2];
  float scales[S::kU][S::kR][2][2];  // of its two groups
};

template <class T, Format F, class S>
struct Stream {
  static constexpr int kNumbers = Held<F>::kNumbers;
  static constexpr int kStep = 4 * kNumbers;  // inputs that one load of four threads covers
  static constexpr int kWords = kNumbers / 2;

  const Arguments& p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  int64_t row_bytes;
  const uint8_t* rows[S::kR][2];
  Weights<F, S> now, next;
  float sums[S::kR][S::kN][4] = {};

  __device__ explicit Stream(const Arguments& arguments) : p(arguments) {
    const int64_t in = p.in;
    row_bytes = F == Format::kPlain ? in * 2 : F == Format::kInt4 ? (in + 127) / 128 * 64 : in;
#pragma unroll
    for (int r = 0; r < S::kR; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        rows[r][half] = p.weight + channel(r, half) * row_bytes + t * 16;
  }

  __device__ __forceinline__ int64_t channel(int r, int half) const {
    return min((int(blockIdx.x) * S::kR + r) * 16 + half * 8 + g, p.out - 1);
  }

  __device__ __forceinline__ void load(Weights<F, S>& to, int first) const {
#pragma unroll
    for (int u = 0; u < S::kU; ++u) {
      const int64_t at = int64_t(first + u) * 64;
      const bool inside = at + t * 16 < row_bytes;
#pragma unroll
      for (int r = 0; r < S::kR; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          to.numbers[u][r][half] = inside ? load16_once(rows[r][half] + at) : uint4{};
          if constexpr (F == Format::kInt4) {
            const int groups = p.in / 64;
            const float* scale = p.scale + channel(r, half) * groups;
#pragma unroll
            for (int part = 0; part < 2; ++part) {
              const int group = (first + u) * 2 + part;
              to.scales[u][r][half][part] = group < groups ? load_scale(scale + group) : 0.0f;
            }
          }
        }
    }
  }

  // This thread's share of row n * 8 + g in step `step`.
  __device__ __forceinline__ void inputs(int n, int step, uint32_t (&words)[kWords]) const {
    const int row = n * 8 + g;
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      int at = step * kStep + t * kNumbers + i * 2;
      if constexpr (F == Format::kInt4) at = step * kStep + i / 8 * 64 + t * 16 + i % 8 * 2;
      uint4 v = {};
      if (row < p.rows && at < p.in)
        v = *reinterpret_cast<const uint4*>(static_cast<const T*>(p.x) + int64_t(row) * p.in + at);
      words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    }
  }

  __device__ __forceinline__ void add(const Weights<F, S>& from, int first) {
#pragma unroll
    for (int u = 0; u < S::kU; ++u) {
      if ((first + u) * kStep >= p.in) break;
#pragma unroll
      for (int n = 0; n < S::kN; ++n) {
        uint32_t words[kWords];
        inputs(n, first + u, words);
#pragma unroll
        for (int r = 0; r < S::kR; ++r) {
          if constexpr (F == Format::kInt4)
            add_groups(from.numbers[u][r], from.scales[u][r], words, sums[r][n]);
          else
            add_some<0, kNumbers / 4>(from.numbers[u][r], words, sums[r][n]);
        }
      }
    }
  }

  template <int First, int Count>
  __device__ __forceinline__ void add_some(const uint4 (&from)[2], const uint32_t (&words)[kWords],
                                           float (&to)[4]) {
#pragma unroll
    for (int i = First; i < First + Count; ++i) {
      uint32_t a[4];
      operands<T, F>(from[0], i, a[0], a[2]);
      operands<T, F>(from[1], i, a[1], a[3]);
      multiply<T>(to, a, words[2 * i], words[2 * i + 1]);
    }
  }

  // int4: each group of 64 inputs is added up by itself and then scaled.
  __device__ __forceinline__ void add_groups(const uint4 (&from)[2], const float (&scales)[2][2],
                                             const uint32_t (&words)[kWords], float (&to)[4]) {
    float low[4] = {}, high[4] = {};
    add_some<0, 4>(from, words, low);
    add_some<4, 4>(from, words, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] += low[i] * scales[i / 2][0] + high[i] * scales[i / 2][1];
  }

  __device__ __forceinline__ void run() {
    const int steps = int((row_bytes + 63) / 64);
    constexpr int kStride = S::kW * S::kU;
    int at = warp * S::kU;
    load(now, at);
    wait_for_previous();
    for (; at < steps; at += 2 * kStride) {
      load(next, at + kStride);
      add(now, at);
      load(now, at + 2 * kStride);
      add(next, at + kStride);
    }
  }

  __device__ __forceinline__ void finish(int index, float sum) const {
    const int from = index % 32, i = index / 32 % 4;
    const int n = index / 128 % S::kN, r = index / 128 / S::kN;
    const int row = n * 8 + from % 4 * 2 + i % 2;
    const int to = (int(blockIdx.x) * S::kR + r) * 16 + i / 2 * 8 + from / 4;
    if (row >= p.rows || to >= p.out) return;
    if (p.x_scale) sum *= p.x_scale[row];
    if (F != Format::kInt4 && p.scale) sum *= p.scale[to];
    if (p.bias) sum += number(static_cast<const T*>(p.bias)[to]);
    static_cast<T*>(p.y)[int64_t(row) * p.out + to] = T(sum);
  }
};

}  // namespace qinfer::cuda::streaming
