// Products of very few rows with what stands before and after them in a decoder: the residual sum
// and norm before, the gated activation after.
//
// A block asks for its first weights, by asynchronous copies into shared memory, before it waits
// for the kernel that computes its inputs, and at its end for the first weights of the next
// product: so the card reads weights while kernels begin and end.
#include <algorithm>

#include "fused_inputs.cuh"

namespace qinfer::cuda {
namespace {

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// One of a tile's results: its channel and row. The last warps have them, as they have the fewest
// turns where these don't come out even.
template <Format F, class P>
struct Output {
  static constexpr int kParts = P::kParts, kChannels = P::kTile;
  const Stream<F, P>& f;
  const Arguments& p;
  static constexpr int kFirst = P::kThreads - std::max(32, kChannels* kFewRows);
  const int number = threadIdx.x - kFirst;
  const int channel = number % kChannels, row = number / kChannels;
  const int part = channel / 8 * kParts;
  const bool is_mine;
  float scale[kParts], bias[kParts];
  float2 correction;  // of the row

  __device__ explicit Output(const Stream<F, P>& stream)
      : f(stream), p(stream.p), is_mine(number >= 0 && row < p.rows) {}

  // Whole warps, of which some lanes have results.
  __device__ __forceinline__ void correct(const Inputs<F, P>& inputs) {
    if (f.warp * 32 < kFirst) return;
#pragma unroll 1
    for (int of = 0; of < p.rows; ++of) {
      const float2 found = inputs.correction(of);
      if (row == of) correction = found;
    }
  }

  // What a tile's results need besides, long before they are there.
  __device__ __forceinline__ void before(int tile) {
    if (!is_mine) return;
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const int at = f.clamped(f.channels(tile, part + k) + channel % 8);
      scale[k] = F != Format::kInt4 && p.scale ? p.scale[at] : 1.0f;
      bias[k] = p.bias ? float(p.bias[at]) : 0.0f;
    }
  }

  __device__ __forceinline__ void write(int tile, const float* sums) const {
    const int out = p.out / kParts, to = f.channels(tile, part) + channel % 8;
    if (!is_mine || to >= out) return;
    float y[kParts];
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const float* at = sums + ((part + k) * 8 + channel % 8) * kFewRows + row;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < P::kW; ++w) sum += at[w * P::kShare];
      y[k] = (sum - correction.x) * correction.y * scale[k] + bias[k];
    }
    p.y[int64_t(row) * out + to] = BF16(P::kGated ? silu(y[0]) * y[kParts - 1] : y[0]);
  }
};

template <Format F, class P>
__global__ void __launch_bounds__(P::kThreads, 2) fused_kernel(const Arguments p) {
  extern __shared__ __align__(16) uint8_t shared[];
  if (!p.is_late) let_next_start();
  Stream<F, P> stream(p, shared);
  const Inputs<F, P> inputs(stream);
  inputs.before();
#pragma unroll 1
  for (int i = 0; i < P::kS; ++i) stream.load();
  stream.first_scales();
  Output<F, P> output(stream);
  output.before(blockIdx.x);
  wait_for_previous();
  inputs.after();
  if (p.is_late) let_next_start();
  output.correct(inputs);
  int slot = 0;
  float* shares = stream.sums;
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    if (tile != blockIdx.x) output.before(tile);
    float sums[P::kPairs][4] = {};
    stream.run(tile, slot, sums);
    stream.share(sums, shares);
    __syncthreads();
    output.write(tile, shares);
    shares = shares == stream.sums ? stream.sums + P::kSums : stream.sums;
  }
}

// How a product's blocks are laid out.
struct Placing {
  int most;              // blocks for each multiprocessor at the most
  bool is_even = false;  // fewer, if then all of them have equally many tiles
  size_t aside = 0;  // bytes of shared memory taken and not used, so that fewer others fit beside
  bool is_late = false;  // as in Arguments
};

template <Format F, class P>
void run(const FusedProduct& p, const Placing& placing, cudaStream_t stream) {
  const int64_t tiles = (p.out / P::kParts + P::kTile - 1) / P::kTile;
  const int64_t most = placing.most * multiprocessors();
  const int64_t rounds = (tiles + most - 1) / most;
  const int64_t blocks = placing.is_even ? (tiles + rounds - 1) / rounds : std::min(tiles, most);
  const Arguments a{static_cast<const BF16*>(p.x),
                    static_cast<const BF16*>(p.residual),
                    static_cast<const BF16*>(p.norm),
                    static_cast<BF16*>(p.total),
                    static_cast<const uint8_t*>(p.weight),
                    p.scale,
                    static_cast<const BF16*>(p.bias),
                    static_cast<BF16*>(p.y),
                    p.eps,
                    static_cast<int>(p.rows),
                    static_cast<int>(p.in),
                    static_cast<int>(p.out),
                    static_cast<int>(tiles),
                    placing.is_late};
  const size_t used = Stream<F, P>::shared_bytes(a.rows, a.in);
  const size_t shared = std::min(used + placing.aside, size_t(most_shared()));
  check(cudaFuncSetAttribute(fused_kernel<F, P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most_shared()),
        "asking for shared memory");
  launch(fused_kernel<F, P>, dim3(blocks), P::kThreads, shared, stream, a);
}

template <Format F, class P>
bool fits(const FusedProduct& p) {
  return Stream<F, P>::shared_bytes(static_cast<int>(p.rows), static_cast<int>(p.in)) <=
         size_t(most_shared());
}

// False, and nothing done, where a block of that plan has not enough shared memory.
template <Format F, class P>
bool ran(const FusedProduct& p, const Placing& placing, cudaStream_t stream) {
  const bool does = fits<F, P>(p);
  if (does) run<F, P>(p, placing, stream);
  return does;
}

// The plans below were measured for the shapes of Qwen2 on an H100 (benchmarks/gpu/NOTES.md). How
// far a block looks ahead also decides which of the next kernels' blocks fit beside it. Those of
// attention should, which follow the QKV product's; those that read weights should not yet, as
// attention's few loads wait behind theirs.
constexpr int kWarps = 16, kInt4Warps = 14;  // 3584 inputs are 28 steps of int4
constexpr size_t kKilo = 1024;

template <Format F>
void choose_gated(const FusedProduct& p, cudaStream_t stream) {
  if constexpr (F == Format::kInt4) {
    run<F, Plan<kInt4Warps, 2, 2, true>>(p, {2, true, 0}, stream);
  } else if constexpr (F == Format::kPlain) {
    if (p.in >= 2048 && ran<F, Plan<kWarps, 2, 8, true>>(p, {1, false, 0}, stream)) return;
    if (p.in >= 1024 && ran<F, Plan<kWarps, 2, 6, true>>(p, {2, false, 0}, stream)) return;
    run<F, Plan<kWarps, 2, 4, true>>(p, {2, false, 0}, stream);
  } else {
    if (p.in >= 2048 && ran<F, Plan<kWarps, 2, 5, true>>(p, {1, false, 32 * kKilo}, stream)) return;
    run<F, Plan<kWarps, 2, 3, true>>(p, {2, false, 0}, stream);
  }
}

// QKV, the output of attention, down.
template <Format F>
void choose_plain(const FusedProduct& p, cudaStream_t stream) {
  constexpr bool kPlain = F == Format::kPlain, kInt4 = F == Format::kInt4;
  constexpr int kW = kInt4 ? kInt4Warps : kWarps;
  const Placing first{2, !kPlain, 0}, output{1, false, (kInt4 ? 96 : 32) * kKilo};
  const Placing down = kInt4 ? Placing{2, false, 0} : Placing{1, true, 32 * kKilo};
  const Placing& placing = p.norm ? first : p.in > p.out ? down : output;
  if (!ran<F, Plan<kW, 2, kInt4 ? 3 : 6, false>>(p, placing, stream))
    run<F, Plan<kW, 2, 3, false>>(p, {2, false, 0}, stream);
}

template <Format F>
void choose(const FusedProduct& p, cudaStream_t stream) {
  (p.gated ? choose_gated<F> : choose_plain<F>)(p, stream);
}

}  // namespace

constexpr int64_t kMostChannels = 1 << 16;  // of a vocabulary, linear.cu's blocks end less often

// Beyond, inputs take too much shared memory for blocks to be on a multiprocessor together.
bool fused_knows(Type type, Format format, int64_t rows, int64_t in, int64_t out) {
  constexpr int64_t kRest = 70 << 10;  // bytes for the weights on their way and the sums
  const int64_t inputs = rows * (in + 128) * 2, most = format == Format::kInt4 ? 1 : kFewRows;
  return out <= kMostChannels && type == Type::kBF16 && rows > 0 && rows <= most &&
         inputs <= (48 << 10) && inputs + kRest <= most_shared();
}

void fused_product(Format format, const FusedProduct& p, cudaStream_t stream) {
  switch (format) {
    case Format::kPlain:
      return choose<Format::kPlain>(p, stream);
    case Format::kInt8:
      return choose<Format::kInt8>(p, stream);
    case Format::kE4M3:
      return choose<Format::kE4M3>(p, stream);
    default:
      return choose<Format::kInt4>(p, stream);
  }
}

}  // namespace qinfer::cuda
