// Products of 17 to 64 rows with weights of 8 or 4 bits, on Hopper: weights come as they are held,
// and become operands in registers. One warp fetches, four multiply 16 R channels each by all rows;
// the blocks of a cluster share out the inputs and put their sums together through shared memory.
#include <algorithm>
#include <cmath>

#include "cluster_sums.cuh"
#include "hopper_products.h"
#include "weights.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kBytes = 64;  // of a channel in a stage
constexpr int kMostStages = 12;

struct Maps {
  CUtensorMap x, weight;
};

struct Arguments {
  Outputs o;
  const float* scale;  // int4: of each channel's groups
  int in, steps, stages;
};

template <Format F, int N, int R>
struct Shape {
  static constexpr int kChannels = kWarps * 16 * R, kRows = N * 8;
  static constexpr int kParts = F == Format::kInt4 ? 2 : 1;  // of 64 inputs in a stage
  static constexpr int kStage = kChannels * kBytes + kParts * kRows * 128;
  static constexpr int kSums = kChannels * kRows * 4;
  static constexpr int kBlocks = N * R > 8 ? 3 : 4;  // that a multiprocessor holds
};

#ifdef QINFER_HOPPER

// Two steps' operands: numbers 8 half to 8 half + 7 of a thread's sixteen (of `part`, int4).
template <class T, Format F>
__device__ __forceinline__ void unpack_steps(uint2 v, uint32_t (&low)[2], uint32_t (&high)[2]) {
  if constexpr (F == Format::kInt8) {
    from_int8<T>(v.x, low[0], high[0]), from_int8<T>(v.y, low[1], high[1]);
  } else {
    low[0] = from_nibbles<T>(v.x), high[0] = from_nibbles<T>(v.x >> 4);
    low[1] = from_nibbles<T>(v.x >> 8), high[1] = from_nibbles<T>(v.x >> 12);
  }
}

template <class T, Format F, class S, int N, int R>
struct Rows {
  const Arguments& p;
  unsigned char* memory;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarps, g = lane / 4, t = lane % 4;
  float sums[R][N][4] = {};

  __device__ __forceinline__ int channel(int r, int half) const {
    return int(blockIdx.y) * S::kChannels + (warp * R + r) * 16 + half * 8 + g;
  }

  // int4: the scales of a stage's two groups
  using Scales = float[R][2][2];
  __device__ __forceinline__ void load_scales(Scales& to, int step) const {
    const int groups = p.in / 64;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const int group = step * 2 + part, from = channel(r, half);
          to[r][half][part] = group < groups && from < p.o.out
                                  ? __ldg(p.scale + int64_t(from) * groups + group)
                                  : 0;
        }
  }

  __device__ __forceinline__ void add(const unsigned char* stage, const Scales& scales) {
    const unsigned char* weight = stage + (warp * R * 16 + g) * kBytes + t * 16;
    const unsigned char* x = stage + S::kChannels * kBytes;
#pragma unroll
    for (int part = 0; part < S::kParts; ++part)
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        uint4 v[N];
#pragma unroll
        for (int n = 0; n < N; ++n)
          v[n] = *reinterpret_cast<const uint4*>(x + (part * S::kRows + n * 8 + g) * 128 +
                                                 ((2 * t + pair) ^ g) * 16);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          uint32_t a[2][4], low[2], high[2];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const unsigned char* from = weight + (r * 16 + half * 8) * kBytes;
            uint2 bits;
            if constexpr (F == Format::kInt4)
              bits = {*reinterpret_cast<const uint32_t*>(from + part * 8 + pair * 4), 0};
            else
              bits = *reinterpret_cast<const uint2*>(from + pair * 8);
            unpack_steps<T, F>(bits, low, high);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              if constexpr (F == Format::kInt4) {
                low[i] = times<T>(low[i], scales[r][half][part]);
                high[i] = times<T>(high[i], scales[r][half][part]);
              }
              a[i][half] = low[i], a[i][half + 2] = high[i];
            }
          }
#pragma unroll
          for (int n = 0; n < N; ++n) multiply<T>(sums[r][n], a[0], v[n].x, v[n].y);
#pragma unroll
          for (int n = 0; n < N; ++n) multiply<T>(sums[r][n], a[1], v[n].z, v[n].w);
        }
      }
  }
};

#endif

template <class T, Format F, int N, int R>
__global__ void __launch_bounds__(kThreads, Shape<F, N, R>::kBlocks)
    rows_kernel(const __grid_constant__ Maps maps, const Arguments p) {
#ifdef QINFER_HOPPER
  using S = Shape<F, N, R>;
  const int stages = p.stages;
  extern __shared__ unsigned char raw[];
  __shared__ uint64_t here[kMostStages], read[kMostStages];
  unsigned char* memory = reinterpret_cast<unsigned char*>(
      (reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t(1023));
  const int blocks = gridDim.x, rank = blockIdx.x;
  const int begin = int(int64_t(p.steps) * rank / blocks);
  const int end = int(int64_t(p.steps) * (rank + 1) / blocks);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) barrier_init(&here[i], 1), barrier_init(&read[i], kWarps);
    barrier_fence();
  }
  __syncthreads();
  let_next_start();
  Rows<T, F, S, N, R> rows{p, memory};
  const auto weights = [&](int step, int stage) {
    barrier_expect(&here[stage], S::kStage);
    copy_box(memory + stage * S::kStage, &maps.weight, &here[stage], step * kBytes,
             int(blockIdx.y) * S::kChannels);
  };
  const auto inputs = [&](int step, int stage) {
    for (int part = 0; part < S::kParts; ++part)
      copy_box(memory + stage * S::kStage + S::kChannels * kBytes + part * S::kRows * 128, &maps.x,
               &here[stage], (step * S::kParts + part) * 64, 0);
  };
  const int ahead = min(begin + stages, end);
  if (threadIdx.x == 0)
    for (int step = begin; step < ahead; ++step) weights(step, step - begin);
  float scales[2][R][2][2];
  if constexpr (F == Format::kInt4) rows.load_scales(scales[0], begin);
  wait_for_previous();  // weights do not depend on it
  if (threadIdx.x == 0)
    for (int step = begin; step < ahead; ++step) inputs(step, step - begin);
  for (int step = begin, stage = 0, parity = 0; step < end; ++step) {
    if constexpr (F == Format::kInt4) rows.load_scales(scales[1], step + 1);
    barrier_wait(&here[stage], parity);
    rows.add(memory + stage * S::kStage, scales[0]);
    __syncwarp();
    if (rows.lane == 0) barrier_arrive(&read[stage]);
    // the stage before this one has been read by all, or almost
    const int last = stage ? stage - 1 : stages - 1, next = step - 1 + stages;
    if (threadIdx.x == 0 && step > begin && next < end) {
      barrier_wait(&read[last], stage ? parity : parity ^ 1);
      weights(next, last), inputs(next, last);
    }
    if (++stage == stages) stage = 0, parity ^= 1;
    if constexpr (F == Format::kInt4)
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) scales[0][r][i / 2][i % 2] = scales[1][r][i / 2][i % 2];
  }
  __syncthreads();
  const ClusterSums<T, S::kChannels, kThreads> all{p.o, reinterpret_cast<float*>(memory),
                                                   int(blockIdx.y) * S::kChannels};
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) all.keep((rows.warp * R + r) * 16, n, i, rows.sums[r][n][i]);
  all.finish(rank, blocks);
#endif
}

// How many blocks share a tile's inputs: full waves of blocks, and not too few steps each.
int split_of(int64_t tiles, int64_t steps, int each_holds) {
  const double slots = double(each_holds) * multiprocessors();
  int best = 1;
  double most = 0;
  for (int blocks : {1, 2, 4, 8}) {
    if (steps / blocks < 2) break;
    const double waves = tiles * blocks / slots;
    const double each = double(steps) / blocks;
    const double used = waves / std::ceil(waves) * each / (each + 4);
    if (used > most) most = used, best = blocks;
  }
  return best;
}

template <class T, Format F, int N, int R>
void run(const Product& p, cudaStream_t stream) {
  using S = Shape<F, N, R>;
  constexpr auto kType =
      std::is_same_v<T, BF16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  auto* kernel = rows_kernel<T, F, N, R>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 220 << 10),
        "raising a kernel's shared memory");
  Maps maps;
  const uint64_t row_bytes = F == Format::kInt4 ? int4_bytes(1, p.in) : p.in;
  {
    const uint64_t sizes[] = {uint64_t(p.in), uint64_t(p.rows)}, strides[] = {uint64_t(p.in) * 2};
    const uint32_t box[] = {64, S::kRows};
    maps.x = tensor_map(kType, p.x, 2, sizes, strides, box);
  }
  const uint64_t sizes[] = {row_bytes, uint64_t(p.out)}, strides[] = {row_bytes};
  const uint32_t box[] = {kBytes, S::kChannels};
  maps.weight = tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, p.weight, 2, sizes, strides, box, false);
  const int64_t tiles = (p.out + S::kChannels - 1) / S::kChannels;
  const int64_t steps = (row_bytes + kBytes - 1) / kBytes;
  const int blocks = split_of(tiles, steps, S::kBlocks);
  // the fewer blocks there are, the more each has to have on its way
  const int64_t held = std::min<int64_t>((tiles * blocks - 1) / multiprocessors() + 1, S::kBlocks);
  const int64_t room = (220 / held - 3) * 1024;
  const int stages =
      static_cast<int>(std::min<int64_t>({room / S::kStage, steps / blocks + 1, kMostStages}));
  const size_t shared = std::max(stages * S::kStage, S::kSums) + 1024;
  const bool by_group = F == Format::kInt4;
  const Outputs o{by_group ? nullptr : p.scale, p.x_scale, p.bias, p.y, int(p.rows), int(p.out)};
  const Arguments a{o, p.scale, int(p.in), int(steps), stages};
  launch_clusters(kernel, dim3(blocks, tiles), blocks, kThreads, shared, stream, maps, a);
}

template <class T, Format F>
void of_rows(const Product& p, cudaStream_t stream) {
  p.rows <= 32 ? run<T, F, 4, 2>(p, stream) : run<T, F, 8, 2>(p, stream);
}

template <class T>
void of_format(Format format, const Product& p, cudaStream_t stream) {
  if (format == Format::kInt8)
    of_rows<T, Format::kInt8>(p, stream);
  else
    of_rows<T, Format::kInt4>(p, stream);
}

}  // namespace

void product_hopper(Type type, Format format, const Product& p, cudaStream_t stream) {
  if (type == Type::kBF16)
    of_format<BF16>(format, p, stream);
  else
    of_format<F16>(format, p, stream);
}

}  // namespace qinfer::cuda
