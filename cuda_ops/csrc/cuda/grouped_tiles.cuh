// A tile of 256 channels by 64 rows of an expert: how its weights and inputs come, and its
// products.
#pragma once
#include "grouped.cuh"

namespace qinfer::cuda::experts {

constexpr int kThreads = 128, kChannels = 256, kRows = kMatrixTile;
constexpr int kN = kRows / 8;           // rows by eights
constexpr int kM = kChannels / 4 / 16;  // a warp's channels by sixteens

__device__ __forceinline__ void copy16(uint32_t to, const void* from, bool inside) {
  const int bytes = inside ? 16 : 0;  // what is not read is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

// Shared memory of one step: 64 or 128 bytes of each channel, and the inputs of the rows that
// meet them. Pieces of sixteen bytes change places in every second row, where two rows would
// otherwise meet in one bank.
template <Format F>
struct Layout {
  static constexpr int kNumbers = Held<F>::kNumbers;
  static constexpr int kSub = F == Format::kPlain ? 2 : 1;  // steps of 64 bytes at a time
  static constexpr int kInputs = 4 * kNumbers * kSub;
  static constexpr int kPieces = kInputs * 2 / 16;  // of a row of inputs
  static constexpr int kRow = 64 * kSub, kWeights = kChannels * kRow;
  static constexpr int kStage = kWeights + kRows * kPieces * 16;
  static constexpr int kStages = F == Format::kPlain ? 2 : F == Format::kInt4 ? 3 : 4;
  static __device__ __forceinline__ int weight_at(int row, int piece) {
    return row * kRow + (piece ^ (kSub > 1 ? (row & 1) * 4 : 0)) * 16;
  }
  static __device__ __forceinline__ int input_at(int row, int piece) {
    const int moved = F == Format::kPlain ? (kSub > 1 ? (row & 1) * 4 : 0) : row & 1;
    return kWeights + (row * kPieces + (piece ^ moved)) * 16;
  }
};

// The pairs of a tile (negative: none) and the scales of their inputs.
struct Rows {
  int pair[kRows];
  float scale[kRows];
};

template <class T, Format F, bool Groups>
struct Matrix {
  using L = Layout<F>;
  static constexpr int kParts = Groups ? 4 * L::kNumbers / 64 : 1;  // of 64 inputs, in 64 bytes
  static constexpr int kEach = L::kNumbers / 4 / kParts;            // instructions of a part

  const Grouped& p;
  const Tile tile;
  const uint32_t base;
  uint8_t* const memory;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int64_t bytes;
  const int64_t first_channel;
  const uint8_t* weights;
  const Rows& rows;
  const T* inputs[kRows * L::kPieces / kThreads];  // of the rows this thread copies from
  float sums[kM][kN][4] = {};

  __device__ Matrix(const Grouped& given, const Tile& mine, uint8_t* shared, const Rows& its)
      : p(given),
        tile(mine),
        base(shared_address(shared)),
        memory(shared),
        bytes(row_bytes<F>(given.in)),
        first_channel(int64_t(blockIdx.y) * kChannels),
        rows(its) {
    weights = static_cast<const uint8_t*>(p.weight) + tile.expert * p.out * bytes;
#pragma unroll
    for (int i = 0; i < kRows * L::kPieces / kThreads; ++i)
      inputs[i] = inputs_of<T>(p, rows.pair[(i * kThreads + threadIdx.x) / L::kPieces]);
  }

  __device__ __forceinline__ void load(int step, int stage) const {
    const uint32_t to = base + stage * L::kStage;
    constexpr int kEach = L::kRow / 16;  // pieces of a channel
    const int piece = threadIdx.x % kEach;
    const int64_t at = int64_t(step) * L::kRow + piece * 16;
#pragma unroll
    for (int i = 0; i < kChannels * kEach / kThreads; ++i) {
      const int row = (i * kThreads + threadIdx.x) / kEach;
      const int64_t channel = min(first_channel + row, p.out - 1);
      copy16(to + L::weight_at(row, piece), weights + channel * bytes + at, at < bytes);
    }
#pragma unroll
    for (int i = 0; i < kRows * L::kPieces / kThreads; ++i) {
      const int index = i * kThreads + threadIdx.x, own = index % L::kPieces;
      const int64_t input = int64_t(step) * L::kInputs + own * 8;
      const bool inside = inputs[i] && input < p.in;
      copy16(to + L::input_at(index / L::kPieces, own), inside ? inputs[i] + input : p.x, inside);
    }
  }

  // The words of row n * 8 + g that meet the instructions of a part.
  template <int Sub, int Part>
  __device__ __forceinline__ void words(const uint8_t* stage, int n,
                                        uint32_t (&to)[2 * kEach]) const {
#pragma unroll
    for (int i = 0; i < kEach / 2; ++i) {
      const int at = Part * kEach / 2 + i;
      const int piece =
          F == Format::kInt4 ? at / 2 * 8 + 2 * t + at % 2 : L::kNumbers / 8 * (Sub * 4 + t) + at;
      const uint4 v = *reinterpret_cast<const uint4*>(stage + L::input_at(n * 8 + g, piece));
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    }
  }

  template <int Sub, int Part>
  __device__ __forceinline__ void add(const uint8_t* stage, int step) {
    uint32_t a[kM][kEach][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int row = (warp * kM + m) * 16 + g;
      const auto piece = [&](int at) {
        return *reinterpret_cast<const uint4*>(stage + L::weight_at(at, Sub * 4 + t));
      };
      const uint4 low = piece(row), high = piece(row + 8);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        operands<T, F>(low, Part * kEach + i, a[m][i][0], a[m][i][2]);
        operands<T, F>(high, Part * kEach + i, a[m][i][1], a[m][i][3]);
      }
    }
    float scale[kM][2];
    if constexpr (Groups) {
      const int64_t at = (int64_t(step) * L::kSub + Sub) * 4 * L::kNumbers + Part * 64;
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t channel =
              min(first_channel + (warp * kM + m) * 16 + half * 8 + g, p.out - 1);
          scale[m][half] = __ldg(scales_of(p, tile.expert, channel) + min(at, p.in - 1) / p.group);
        }
    }
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      uint32_t b[2 * kEach];
      words<Sub, Part>(stage, n, b);
      float some[kM][4] = {};
      // Sixteen channels after the other, as an instruction waits for the one whose sum it adds to.
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int m = 0; m < kM; ++m)
          multiply<T>(Groups ? some[m] : sums[m][n], a[m][i], b[2 * i], b[2 * i + 1]);
      if constexpr (Groups)
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n][i] += some[m][i] * scale[m][i / 2];
    }
  }

  __device__ __forceinline__ void run() {
    const int steps = static_cast<int>((bytes + L::kRow - 1) / L::kRow);
#pragma unroll
    for (int s = 0; s < L::kStages - 1; ++s) {
      if (s < steps) load(s, s);
      asm volatile("cp.async.commit_group;");
    }
    for (int step = 0; step < steps; ++step) {
      asm volatile("cp.async.wait_group %0;" ::"n"(L::kStages - 2) : "memory");
      __syncthreads();
      const int ahead = step + L::kStages - 1;
      if (ahead < steps) load(ahead, ahead % L::kStages);
      asm volatile("cp.async.commit_group;");
      const uint8_t* stage = memory + step % L::kStages * L::kStage;
      add<0, 0>(stage, step);
      if constexpr (kParts > 1) add<0, 1>(stage, step);
      if constexpr (L::kSub > 1) add<1, 0>(stage, step);
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
  }

  // Through shared memory, so that rows are written in long pieces.
  __device__ __forceinline__ void finish() {
    constexpr int kPitch = kChannels + 8;
    T* out = reinterpret_cast<T*>(memory);
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int own = (warp * kM + m) * 16 + half * 8 + g;
        const int64_t channel = min(first_channel + own, p.out - 1);
        const float scale = p.scale && !p.group ? p.scale[tile.expert * p.out + channel] : 1.0f;
        const float bias = p.bias ? number(static_cast<const T*>(p.bias)[channel]) : 0.0f;
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int row = n * 8 + t * 2 + i;
            const float sum = sums[m][n][half * 2 + i] * rows.scale[row];
            out[row * kPitch + own] = T(sum * scale + bias);
          }
      }
    __syncthreads();
    const int width = static_cast<int>(min(int64_t(kChannels), p.out - first_channel));
    for (int row = warp; row < tile.count; row += kThreads / 32) {
      T* to = static_cast<T*>(p.y) + rows.pair[row] * p.out + first_channel;
      const T* from = out + row * kPitch;
      if (p.out % 8 == 0) {
        for (int i = lane * 8; i < width; i += 256)
          *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
      } else {
        for (int i = lane; i < width; i += 32) to[i] = from[i];
      }
    }
  }
};

}  // namespace qinfer::cuda::experts
