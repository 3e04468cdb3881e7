// Few rows for each expert: the weights of the chosen ones stream from memory into registers, as
// in linear.cu, and the others are not touched.
#include "grouped.cuh"

namespace qinfer::cuda {
namespace {

// A block computes 16 channels of a tile of 8 rows; its W warps share the inputs out, U loads of
// each channel at a time.
template <class T, Format F, bool Groups, int W, int U>
struct Stream {
  static constexpr int kNumbers = Held<F>::kNumbers;
  static constexpr int kWords = kNumbers / 2;
  static constexpr int kParts = Groups ? 4 * kNumbers / 64 : 1;  // of 64 inputs, in a step

  struct Loaded {
    uint4 numbers[U][2];
    float scales[U][2][kParts];
  };

  const Grouped& p;
  const Tile tile;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int64_t bytes;
  const T* x;
  const uint8_t* rows[2];
  const float* scales[2];
  float sums[4] = {};

  __device__ Stream(const Grouped& given, const Tile& mine)
      : p(given), tile(mine), bytes(row_bytes<F>(given.in)) {
    x = inputs_of<T>(p, pair_of(p, tile, g));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t channel = min(int64_t(blockIdx.y) * 16 + half * 8 + g, p.out - 1);
      const auto* weight = static_cast<const uint8_t*>(p.weight);
      rows[half] = weight + (tile.expert * p.out + channel) * bytes + t * 16;
      if constexpr (Groups) scales[half] = scales_of(p, tile.expert, channel);
    }
  }

  __device__ __forceinline__ void load(Loaded& to, int first) const {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t at = int64_t(first + u) * 64;
      const bool inside = at + t * 16 < bytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to.numbers[u][half] =
            inside ? __ldcs(reinterpret_cast<const uint4*>(rows[half] + at)) : uint4{};
        if constexpr (Groups) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const int input = ((first + u) * kParts + part) * 64;
            to.scales[u][half][part] =
                input < p.in ? __ldg(scales[half] + input / static_cast<int>(p.group)) : 0.0f;
          }
        }
      }
    }
  }

  // This thread's inputs of its row in a step.
  __device__ __forceinline__ void inputs(int step, uint32_t (&words)[kWords]) const {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const int64_t begin = int64_t(step) * 4 * kNumbers;
      const int64_t at = F == Format::kInt4 ? begin + i / 8 * 64 + t * 16 + i % 8 * 2
                                            : begin + t * kNumbers + i * 2;
      const uint4 v = x && at < p.in ? *reinterpret_cast<const uint4*>(x + at) : uint4{};
      words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    }
  }

  __device__ __forceinline__ void add(const Loaded& from, int first) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (int64_t(first + u) * 4 * kNumbers >= p.in) break;
      uint32_t words[kWords];
      inputs(first + u, words);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float some[4] = {};
        constexpr int kEach = kNumbers / 4 / kParts;
#pragma unroll
        for (int i = part * kEach; i < (part + 1) * kEach; ++i) {
          uint32_t a[4];
          operands<T, F>(from.numbers[u][0], i, a[0], a[2]);
          operands<T, F>(from.numbers[u][1], i, a[1], a[3]);
          multiply<T>(Groups ? some : sums, a, words[2 * i], words[2 * i + 1]);
        }
        if constexpr (Groups)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i] += some[i] * from.scales[u][i / 2][part];
      }
    }
  }

  __device__ __forceinline__ void run() {
    const int steps = static_cast<int>((bytes + 63) / 64);
    Loaded now;
    for (int at = warp * U; at < steps; at += W * U) {
      load(now, at);
      add(now, at);
    }
  }
};

template <class T, Format F, bool Groups, int W, int U, int B>
__global__ void __launch_bounds__(W * 32, B) stream_kernel(const Grouped p) {
  __shared__ float shared[W][128];
  let_next_start();
  wait_for_previous();
  const Tile tile = tile_of(p, blockIdx.x, kStreamTile);
  if (tile.count <= 0) return;
  Stream<T, F, Groups, W, U> stream(p, tile);
  stream.run();
#pragma unroll
  for (int i = 0; i < 4; ++i) shared[stream.warp][i * 32 + stream.lane] = stream.sums[i];
  __syncthreads();
  for (int i = threadIdx.x; i < 128; i += W * 32) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < W; ++w) sum += shared[w][i];
    const int from = i % 32, part = i / 32;
    const int pair = pair_of(p, tile, from % 4 * 2 + part % 2);
    const int64_t channel = int64_t(blockIdx.y) * 16 + part / 2 * 8 + from / 4;
    if (pair >= 0 && channel < p.out)
      static_cast<T*>(p.y)[pair * p.out + channel] =
          T(finished<T>(p, tile.expert, channel, pair, sum));
  }
}

// Measured (benchmarks/gpu/NOTES.md): many small blocks hide more than loads ahead of their use.
template <class T, Format F, bool Groups>
void run(const Grouped& p, cudaStream_t stream) {
  constexpr int kW = 4, kU = F == Format::kPlain ? 4 : F == Format::kInt4 ? 1 : 2;
  constexpr int kBlocks = F == Format::kPlain || (Groups && F != Format::kInt4) ? 5 : 8;
  launch(stream_kernel<T, F, Groups, kW, kU, kBlocks>, dim3(p.num_tiles, (p.out + 15) / 16),
         kW * 32, 0, stream, p);
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

void stream_grouped(Type type, Format format, const Grouped& p, cudaStream_t stream) {
  if (!p.pairs) return;
  if (type == Type::kBF16)
    choose<BF16>(format, p, stream);
  else
    choose<F16>(format, p, stream);
}

}  // namespace qinfer::cuda
