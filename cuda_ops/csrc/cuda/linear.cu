// Products for few rows: the weights stream from memory straight into registers, once, and the
// matrix units multiply, so that up to 64 rows cost little more than one.
#include <algorithm>
#include <array>
#include <atomic>
#include <type_traits>

#include "weights.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kMostTiles = 1 << 16;
__device__ unsigned arrived[kMostTiles];  // shares of a tile that are done; zero between launches

// A tile is R * 16 channels of N * 8 rows. The W warps of a block share out its inputs, U loads of
// each channel at a time: W * U * 64 bytes of each channel's weights are a unit of work. All units,
// tile after tile, are dealt out evenly to as many blocks as the card holds at once ("stream-K",
// arXiv:2301.03598); a tile that several blocks have a share of is added up by the last to end.
template <int N, int R, int W, int U>
struct Shape {
  static constexpr int kN = N, kR = R, kW = W, kU = U;
  static constexpr int kSums = N * R * 4 * 32;
  static constexpr int kBuffers = 2 * W * kSums * 4 <= 48 << 10 ? 2 : 1;
};

struct Arguments {
  const void* x;
  const uint8_t* weight;
  const float* scale;
  const float* x_scale;
  const void* bias;
  void* y;
  float* scratch;
  int rows, in, out, tiles, chunks;  // chunks: units of a tile
};

__device__ __forceinline__ int first_unit(const Arguments& p, int block) {
  return static_cast<int>(int64_t(block) * p.tiles * p.chunks / gridDim.x);
}
__device__ __forceinline__ int owner(const Arguments& p, int unit) {
  return static_cast<int>(((int64_t(unit) + 1) * gridDim.x - 1) / (int64_t(p.tiles) * p.chunks));
}

template <class T, Format F, class S>
struct Stream {
  static constexpr int kNumbers = Held<F>::kNumbers;
  static constexpr int kStep = 4 * kNumbers;  // inputs that one load of four threads covers
  static constexpr int kWords = kNumbers / 2;
  using Weights = uint4[S::kU][S::kR][2];

  const Arguments& p;
  float (*shared)[S::kW][S::kSums];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int begin, end;  // this block's units
  int64_t row_bytes;
  int buffer = 0;
  Weights now, next;
  float sums[S::kR][S::kN][4] = {};

  __device__ Stream(const Arguments& arguments, float (*memory)[S::kW][S::kSums])
      : p(arguments),
        shared(memory),
        begin(first_unit(arguments, blockIdx.x)),
        end(first_unit(arguments, blockIdx.x + 1)) {
    const int64_t in = p.in;
    row_bytes = F == Format::kPlain ? in * 2 : F == Format::kInt4 ? (in + 127) / 128 * 64 : in;
  }

  __device__ __forceinline__ int channel(int tile, int r, int half) const {
    return min((tile * S::kR + r) * 16 + half * 8 + g, p.out - 1);
  }
  __device__ __forceinline__ int step_of(int unit, int u) const {
    return (unit % p.chunks * S::kW + warp) * S::kU + u;
  }

  __device__ __forceinline__ void load(Weights& to, int unit) const {
    if (unit >= end) return;
    const int tile = unit / p.chunks;
#pragma unroll
    for (int r = 0; r < S::kR; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint8_t* row = p.weight + channel(tile, r, half) * row_bytes;
#pragma unroll
        for (int u = 0; u < S::kU; ++u) {
          const int64_t at = int64_t(step_of(unit, u)) * 64 + t * 16;
          to[u][r][half] =
              at < row_bytes ? __ldcs(reinterpret_cast<const uint4*>(row + at)) : uint4{};
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

  __device__ __forceinline__ void add(const Weights& from, int unit) {
#pragma unroll
    for (int u = 0; u < S::kU; ++u) {
      const int step = step_of(unit, u);
      if (step * kStep >= p.in) break;
#pragma unroll
      for (int n = 0; n < S::kN; ++n) {
        uint32_t words[kWords];
        inputs(n, step, words);
#pragma unroll
        for (int r = 0; r < S::kR; ++r) {
          if constexpr (F == Format::kInt4)
            add_groups(from[u][r], words, unit / p.chunks, step, r, sums[r][n]);
          else
            add_all(from[u][r], words, sums[r][n]);
        }
      }
    }
  }

  __device__ __forceinline__ void add_all(const uint4 (&from)[2], const uint32_t (&words)[kWords],
                                          float (&to)[4]) {
#pragma unroll
    for (int i = 0; i < kNumbers / 4; ++i) {
      uint32_t a[4];
      operands<T, F>(from[0], i, a[0], a[2]);
      operands<T, F>(from[1], i, a[1], a[3]);
      multiply<T>(to, a, words[2 * i], words[2 * i + 1]);
    }
  }

  // int4: each group of 64 inputs is added up by itself and then scaled.
  __device__ __forceinline__ void add_groups(const uint4 (&from)[2],
                                             const uint32_t (&words)[kWords], int tile, int step,
                                             int r, float (&to)[4]) {
    const int groups = p.in / 64;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int group = step * 2 + part;
      if (group >= groups) break;
      float own[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[4];
        operands<T, F>(from[0], part * 4 + i, a[0], a[2]);
        operands<T, F>(from[1], part * 4 + i, a[1], a[3]);
        multiply<T>(own, a, words[part * 8 + 2 * i], words[part * 8 + 2 * i + 1]);
      }
      const float low = __ldg(p.scale + int64_t(channel(tile, r, 0)) * groups + group);
      const float high = __ldg(p.scale + int64_t(channel(tile, r, 1)) * groups + group);
      to[0] += own[0] * low, to[1] += own[1] * low;
      to[2] += own[2] * high, to[3] += own[3] * high;
    }
  }

  __device__ __forceinline__ void run() {
    load(now, begin);
    wait_for_previous();
    for (int unit = begin; unit < end; unit += 2) {
      load(next, unit + 1);
      work(now, unit);
      if (unit + 1 >= end) break;
      load(now, unit + 2);
      work(next, unit + 1);
    }
  }

  __device__ __forceinline__ void work(const Weights& from, int unit) {
    add(from, unit);
    const int chunk = unit % p.chunks;
    if (chunk == p.chunks - 1 || unit == end - 1) reduce(unit / p.chunks);
  }

  // The warps' sums as one, in a fixed order: [r][n][i][lane].
  __device__ __forceinline__ void reduce(int tile) {
    if (S::kBuffers == 1) __syncthreads();
#pragma unroll
    for (int r = 0; r < S::kR; ++r)
#pragma unroll
      for (int n = 0; n < S::kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          shared[buffer][warp][((r * S::kN + n) * 4 + i) * 32 + lane] = sums[r][n][i];
          sums[r][n][i] = 0;
        }
    __syncthreads();
    const int first = tile * p.chunks, last = first + p.chunks - 1;
    const bool is_whole = begin <= first && last < end;
    float* mine = p.scratch + (int64_t(blockIdx.x) * 2 + slot(blockIdx.x, tile)) * S::kSums;
    for (int i = threadIdx.x; i < S::kSums; i += S::kW * 32) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < S::kW; ++w) sum += shared[buffer][w][i];
      if (is_whole)
        finish(tile, i, sum);
      else
        mine[i] = sum;
    }
    buffer = (buffer + 1) % S::kBuffers;
    if (!is_whole) combine(tile, owner(p, first), owner(p, last));
  }

  // A block has a share of at most two tiles that are not all its own.
  __device__ __forceinline__ int slot(int block, int tile) const {
    return tile == first_unit(p, block) / p.chunks ? 0 : 1;
  }

  __device__ __forceinline__ void combine(int tile, int first, int last) {
    __shared__ bool is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
      is_last = atomicAdd(&arrived[tile], 1u) == static_cast<unsigned>(last - first);
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int i = threadIdx.x; i < S::kSums; i += S::kW * 32) {
      float sum = 0;
      for (int block = first; block <= last; ++block)
        sum += __ldcg(p.scratch + (int64_t(block) * 2 + slot(block, tile)) * S::kSums + i);
      finish(tile, i, sum);
    }
    if (threadIdx.x == 0) arrived[tile] = 0;
  }

  __device__ __forceinline__ void finish(int tile, int index, float sum) const {
    const int from = index % 32, i = index / 32 % 4;
    const int n = index / 128 % S::kN, r = index / 128 / S::kN;
    const int row = n * 8 + from % 4 * 2 + i % 2;
    const int channel = (tile * S::kR + r) * 16 + i / 2 * 8 + from / 4;
    if (row >= p.rows || channel >= p.out) return;
    if (p.x_scale) sum *= p.x_scale[row];
    if (F != Format::kInt4 && p.scale) sum *= p.scale[channel];
    if (p.bias) sum += number(static_cast<const T*>(p.bias)[channel]);
    static_cast<T*>(p.y)[int64_t(row) * p.out + channel] = T(sum);
  }
};

template <class T, Format F, class S>
__global__ void __launch_bounds__(S::kW * 32, S::kN <= 2 ? 2 : 1)
    stream_kernel(const Arguments p) {
  __shared__ float shared[S::kBuffers][S::kW][S::kSums];
  let_next_start();
  Stream<T, F, S> stream(p, shared);
  stream.run();
}

template <Format F>
using One = Shape<1, 1, 8, F == Format::kInt4 ? 1 : 2>;
using Two = Shape<2, 2, 8, 1>;
using Four = Shape<4, 2, 4, 1>;
using Eight = Shape<8, 2, 4, 1>;

// Blocks that the card holds at once.
template <class T, Format F, class S>
int most_blocks() {
  static std::array<std::atomic<int>, kMostDevices> known;
  int device = 0, found = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  if ((found = known[device].load())) return found;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found, stream_kernel<T, F, S>, S::kW * 32,
                                                      0),
        "asking for a kernel's occupancy");
  found = std::max(found, 1) * multiprocessors();
  known[device].store(found);
  return found;
}

struct Grid {
  int tiles, chunks, blocks;
};

template <class T, Format F, class S>
Grid grid(const Product& p) {
  const int64_t unit = S::kW * S::kU * 4 * Held<F>::kNumbers;
  const int64_t tiles = (p.out + S::kR * 16 - 1) / (S::kR * 16);
  const int64_t chunks = (p.in + unit - 1) / unit;
  const int64_t blocks = std::min<int64_t>(most_blocks<T, F, S>(), tiles * chunks);
  return {static_cast<int>(tiles), static_cast<int>(chunks), static_cast<int>(blocks)};
}

// Calls `what` with the shape for so many rows.
template <class T, Format F, class What>
auto with_shape(int64_t rows, What what) {
  if (rows <= 8) return what(One<F>{});
  if (rows <= 16) return what(Two{});
  if (rows <= 32) return what(Four{});
  return what(Eight{});
}

template <class T, Format F>
void choose(const Product& p, cudaStream_t stream) {
  with_shape<T, F>(p.rows, [&](auto shape) {
    using S = decltype(shape);
    const Grid g = grid<T, F, S>(p);
    const Arguments a{p.x,
                      static_cast<const uint8_t*>(p.weight),
                      p.scale,
                      p.x_scale,
                      p.bias,
                      p.y,
                      p.scratch,
                      static_cast<int>(p.rows),
                      static_cast<int>(p.in),
                      static_cast<int>(p.out),
                      g.tiles,
                      g.chunks};
    launch(stream_kernel<T, F, S>, dim3(g.blocks), S::kW * 32, 0, stream, a);
  });
}

template <class T, Format F>
int64_t scratch_of(const Product& p) {
  return with_shape<T, F>(p.rows, [&](auto shape) -> int64_t {
    using S = decltype(shape);
    const Grid g = grid<T, F, S>(p);
    return g.chunks == 1 ? 0 : int64_t(g.blocks) * 2 * S::kSums;
  });
}

template <class T>
void of_format(Format format, const Product& p, cudaStream_t stream) {
  switch (format) {
    case Format::kPlain:
      return choose<T, Format::kPlain>(p, stream);
    case Format::kInt8:
      return choose<T, Format::kInt8>(p, stream);
    case Format::kE4M3:
      return choose<T, Format::kE4M3>(p, stream);
    case Format::kInt4:
      return choose<T, Format::kInt4>(p, stream);
  }
}

template <class T>
int64_t scratch_of_format(Format format, const Product& p) {
  switch (format) {
    case Format::kPlain:
      return scratch_of<T, Format::kPlain>(p);
    case Format::kInt8:
      return scratch_of<T, Format::kInt8>(p);
    case Format::kE4M3:
      return scratch_of<T, Format::kE4M3>(p);
    default:
      return scratch_of<T, Format::kInt4>(p);
  }
}

}  // namespace

int64_t product_scratch(Type type, Format format, const Product& p) {
  return type == Type::kBF16 ? scratch_of_format<BF16>(format, p)
                             : scratch_of_format<F16>(format, p);
}

void product(Type type, Format format, const Product& p, cudaStream_t stream) {
  if (!p.rows) return;
  if (type == Type::kBF16)
    of_format<BF16>(format, p, stream);
  else
    of_format<F16>(format, p, stream);
}

}  // namespace qinfer::cuda
