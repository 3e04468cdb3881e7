// Many rows for each expert: tiles of 256 channels by 64 rows. Weights travel as they are held,
// through shared memory, and become operands in registers, so that every format reads its own
// bytes only.
#include "grouped.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 128, kChannels = 256;
constexpr int kRows = kMatrixTile, kN = kRows / 8;  // rows by eights
constexpr int kM = kChannels / 4 / 16;              // a warp's channels by sixteens

__device__ __forceinline__ void copy16(uint32_t to, const void* from, bool inside) {
  const int bytes = inside ? 16 : 0;  // what is not read is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

// Shared memory of one step: 64 bytes of each channel, and the inputs that meet them.
template <Format F>
struct Layout {
  static constexpr int kNumbers = Held<F>::kNumbers;
  static constexpr int kInputs = 4 * kNumbers;      // of a step
  static constexpr int kChunks = kInputs * 2 / 16;  // of a row of inputs
  static constexpr int kWeights = kChannels * 64, kStage = kWeights + kRows * kChunks * 16;
  static constexpr int kStages = F == Format::kInt4 ? 3 : 4;
  // A row's chunks change places in every second row where two rows would meet in one bank.
  static __device__ __forceinline__ int at(int row, int chunk) {
    return kWeights + row * kChunks * 16 + (kChunks > 4 ? chunk ^ (row & 1) : chunk) * 16;
  }
};

template <class T, Format F, bool Groups>
struct Matrix {
  using L = Layout<F>;
  static constexpr int kParts = Groups ? L::kInputs / 64 : 1;
  static constexpr int kEach = L::kNumbers / 4 / kParts;  // instructions of a part

  const Grouped& p;
  const Tile tile;
  const uint32_t base;
  uint8_t* const memory;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int64_t bytes;
  const int64_t first_channel;
  const uint8_t* weights;  // this thread's first row of them, and its chunk
  const T* inputs[kRows * L::kChunks / kThreads];
  float sums[kM][kN][4] = {};

  __device__ Matrix(const Grouped& given, const Tile& mine, uint8_t* shared)
      : p(given),
        tile(mine),
        base(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
        memory(shared),
        bytes(row_bytes<F>(given.in)),
        first_channel(int64_t(blockIdx.y) * kChannels) {
    weights = static_cast<const uint8_t*>(p.weight) + tile.expert * p.out * bytes;
#pragma unroll
    for (int i = 0; i < kRows * L::kChunks / kThreads; ++i)
      inputs[i] = inputs_of<T>(p, pair_of(p, tile, (i * kThreads + threadIdx.x) / L::kChunks));
  }

  __device__ __forceinline__ void load(int step, int stage) const {
    const uint32_t to = base + stage * L::kStage;
    const int64_t at = int64_t(step) * 64 + threadIdx.x % 4 * 16;
#pragma unroll
    for (int i = 0; i < kChannels * 4 / kThreads; ++i) {
      const int row = (i * kThreads + threadIdx.x) / 4;
      const int64_t channel = min(first_channel + row, p.out - 1);
      copy16(to + row * 64 + threadIdx.x % 4 * 16, weights + channel * bytes + at, at < bytes);
    }
#pragma unroll
    for (int i = 0; i < kRows * L::kChunks / kThreads; ++i) {
      const int index = i * kThreads + threadIdx.x, chunk = index % L::kChunks;
      const int64_t input = int64_t(step) * L::kInputs + chunk * 8;
      const bool inside = inputs[i] && input < p.in;
      copy16(to + L::at(index / L::kChunks, chunk), inside ? inputs[i] + input : p.x, inside);
    }
  }

  // The words of row n * 8 + g that meet instructions First to First + kEach of a step.
  template <int Part>
  __device__ __forceinline__ void words(const uint8_t* stage, int n,
                                        uint32_t (&to)[2 * kEach]) const {
#pragma unroll
    for (int i = 0; i < kEach / 2; ++i) {
      const int at = Part * kEach / 2 + i;
      const int chunk = F == Format::kInt4 ? at / 2 * 8 + 2 * t + at % 2 : L::kNumbers / 8 * t + at;
      const uint4 v = *reinterpret_cast<const uint4*>(stage + L::at(n * 8 + g, chunk));
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    }
  }

  template <int Part>
  __device__ __forceinline__ void add(const uint8_t* stage, int step) {
    uint32_t a[kM][kEach][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const uint8_t* row = stage + ((warp * kM + m) * 16 + g) * 64 + t * 16;
      const uint4 low = *reinterpret_cast<const uint4*>(row);
      const uint4 high = *reinterpret_cast<const uint4*>(row + 8 * 64);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        operands<T, F>(low, Part * kEach + i, a[m][i][0], a[m][i][2]);
        operands<T, F>(high, Part * kEach + i, a[m][i][1], a[m][i][3]);
      }
    }
    float scale[kM][2];
    if constexpr (Groups) {
      const int64_t input = min(int64_t(step) * L::kInputs + Part * 64, p.in - 1);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t channel =
              min(first_channel + (warp * kM + m) * 16 + half * 8 + g, p.out - 1);
          scale[m][half] = __ldg(scales_of(p, tile.expert, channel) + input / p.group);
        }
    }
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      if (n * 8 >= tile.count) break;
      uint32_t b[2 * kEach];
      words<Part>(stage, n, b);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        float some[4] = {};
#pragma unroll
        for (int i = 0; i < kEach; ++i)
          multiply<T>(Groups ? some : sums[m][n], a[m][i], b[2 * i], b[2 * i + 1]);
        if constexpr (Groups)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n][i] += some[i] * scale[m][i / 2];
      }
    }
  }

  __device__ __forceinline__ void run() {
    const int steps = static_cast<int>((bytes + 63) / 64);
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
      add<0>(stage, step);
      if constexpr (kParts > 1) add<1>(stage, step);
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
  }

  // Through shared memory, so that rows are written in long pieces.
  __device__ __forceinline__ void finish() {
    constexpr int kPitch = kChannels + 8;
    T* out = reinterpret_cast<T*>(memory);
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = n * 8 + t * 2 + i % 2, pair = pair_of(p, tile, row);
        if (pair < 0) continue;
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const int channel = (warp * kM + m) * 16 + i / 2 * 8 + g;
          if (first_channel + channel < p.out)
            out[row * kPitch + channel] =
                T(finished<T>(p, tile.expert, first_channel + channel, pair, sums[m][n][i]));
        }
      }
    __syncthreads();
    const int width = static_cast<int>(min(int64_t(kChannels), p.out - first_channel));
    for (int row = warp; row < tile.count; row += kThreads / 32) {
      T* to = static_cast<T*>(p.y) + pair_of(p, tile, row) * p.out + first_channel;
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

template <class T, Format F, bool Groups>
__global__ void __launch_bounds__(kThreads, 2) matrix_kernel(const Grouped p) {
  extern __shared__ __align__(128) uint8_t memory[];
  let_next_start();
  wait_for_previous();
  const Tile tile = tile_of(p, blockIdx.x, kRows);
  if (tile.count <= 0) return;
  Matrix<T, F, Groups> matrix(p, tile, memory);
  matrix.run();
  matrix.finish();
}

template <class T, Format F, bool Groups>
void run(const Grouped& p, cudaStream_t stream) {
  constexpr int kShared = Layout<F>::kStages * Layout<F>::kStage;
  static_assert(kShared >= kRows * (kChannels + 8) * 2);
  auto* kernel = matrix_kernel<T, F, Groups>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "preparing a kernel");
  launch(kernel, dim3(p.num_tiles, (p.out + kChannels - 1) / kChannels), kThreads, kShared, stream,
         p);
}

template <class T>
void choose(Format format, const Grouped& p, cudaStream_t stream) {
  switch (format) {
    case Format::kPlain:
      return run<T, Format::kPlain, false>(p, stream);
    case Format::kInt8:
      return p.group ? run<T, Format::kInt8, true>(p, stream)
                     : run<T, Format::kInt8, false>(p, stream);
    case Format::kE4M3:
      return p.group ? run<T, Format::kE4M3, true>(p, stream)
                     : run<T, Format::kE4M3, false>(p, stream);
    case Format::kInt4:
      return run<T, Format::kInt4, true>(p, stream);
  }
}

}  // namespace

void multiply_grouped(Type type, Format format, const Grouped& p, cudaStream_t stream) {
  if (!p.pairs) return;
  if (type == Type::kBF16)
    choose<BF16>(format, p, stream);
  else
    choose<F16>(format, p, stream);
}

}  // namespace qinfer::cuda
