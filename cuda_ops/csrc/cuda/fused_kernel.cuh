// Products of very few rows with what stands before and after them in a decoder: the residual sum
// and norm before, the gated activation after.
//
// A block asks for its first weights, by asynchronous copies into shared memory, before it waits
// for the kernel that computes its inputs, and at its end for the first weights of the next
// product: so the card reads weights while kernels begin and end.
#pragma once
#include <algorithm>

#include "fused_inputs.cuh"

namespace qinfer::cuda {

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

}  // namespace qinfer::cuda
