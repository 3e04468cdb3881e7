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

// Number threadIdx.x of a tile: channel i % 8, row i / 8 % 8 of part i / 64, or pair of parts.
template <Format F, class P>
struct Output {
  static constexpr int kParts = P::kGated ? 2 : 1;
  static constexpr int kCount = P::kR / kParts * 64;
  const Stream<F, P>& f;
  const Arguments& p;
  const int channel = threadIdx.x % 8, row = threadIdx.x / 8 % 8, part = threadIdx.x / 64 * kParts;
  const bool is_mine;
  float scale[kParts], bias[kParts];
  float2 correction;

  __device__ explicit Output(const Stream<F, P>& stream)
      : f(stream), p(stream.p), is_mine(threadIdx.x < kCount && row < p.rows) {}

  // What a tile's results need besides, long before they are there.
  __device__ __forceinline__ void before(int tile) {
    if (!is_mine) return;
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const int at = f.clamped(f.channels(tile, part + k) + channel);
      scale[k] = p.scale ? p.scale[at] : 1.0f;
      bias[k] = p.bias ? number(p.bias[at]) : 0.0f;
    }
  }

  __device__ __forceinline__ void write(int tile, const float* sums) const {
    const int out = P::kGated ? p.out / 2 : p.out, to = f.channels(tile, part) + channel;
    if (!is_mine || to >= out) return;
    float y[kParts];
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const int r = part + k;
      const float* at = sums + (r / 2 * 4 + r % 2 * 2 + row % 2) * 32 + channel * 4 + row / 2;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < P::kW; ++w) sum += at[w * P::kPairs * 128];
      y[k] = (sum - correction.x) * correction.y * scale[k] + bias[k];
    }
    p.y[int64_t(row) * out + to] = BF16(P::kGated ? silu(y[0]) * y[kParts - 1] : y[0]);
  }
};

template <Format F, class P>
__global__ void __launch_bounds__(P::kThreads, P::kB) fused_kernel(const Arguments p) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_next_start();
  Stream<F, P> stream(p, shared);
  const Inputs<F, P> inputs(stream);
  inputs.before();
#pragma unroll 1
  for (int i = 0; i < P::kS; ++i) stream.load();
  Output<F, P> output(stream);
  output.before(blockIdx.x);
  wait_for_previous();
  inputs.after();
  output.correction = inputs.correction(min(output.row, p.rows - 1));
  int slot = 0;
  float* shares = stream.sums;
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    if (tile != blockIdx.x) output.before(tile);
    float sums[P::kPairs][4] = {};
    stream.run(slot, sums);
    float* mine = shares + stream.warp * P::kPairs * 128 + stream.lane;
#pragma unroll
    for (int q = 0; q < P::kPairs; ++q)
#pragma unroll
      for (int j = 0; j < 4; ++j) mine[(q * 4 + j) * 32] = sums[q][j];
    __syncthreads();
    output.write(tile, shares);
    shares = shares == stream.sums ? stream.sums + P::kSums : stream.sums;
  }
}

// `most`: blocks for each multiprocessor, which then take several tiles each.
template <Format F, class P>
void run(const FusedProduct& p, int most, cudaStream_t stream) {
  const int64_t each = P::kR / (P::kGated ? 2 : 1) * 8, out = P::kGated ? p.out / 2 : p.out;
  const int64_t tiles = (out + each - 1) / each;
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
                    static_cast<int>(tiles)};
  const size_t shared = Stream<F, P>::shared_bytes(a.rows, a.in);
  check(cudaFuncSetAttribute(fused_kernel<F, P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most_shared()),
        "asking for shared memory");
  const int64_t blocks = std::min<int64_t>(tiles, most * multiprocessors());
  launch(fused_kernel<F, P>, dim3(blocks), P::kThreads, shared, stream, a);
}

template <Format F>
void choose(const FusedProduct& p, cudaStream_t stream) {
  if (p.gated)
    run<F, Plan<16, 2, 3, 2, true>>(p, 2, stream);
  else if (F == Format::kPlain && p.in > p.out)  // long rows: to more blocks
    run<F, Plan<16, 1, 4, 2, false>>(p, 2, stream);
  else
    run<F, Plan<16, 2, 3, 2, false>>(p, 2, stream);
}

}  // namespace

constexpr int64_t kFewRows = 2;             // with more, every block would make too many inputs
constexpr int64_t kMostChannels = 1 << 16;  // of a vocabulary, linear.cu's blocks end less often

// Beyond, inputs take too much shared memory for blocks to be on a multiprocessor together. int4 is
// faster in linear.cu: unpacked here it takes as long as it is read, one after the other.
bool fused_knows(Type type, Format format, int64_t rows, int64_t in, int64_t out) {
  constexpr int64_t kRest = 68 << 10;  // bytes for the weights on their way and the sums
  const int64_t inputs = rows * (in + 128) * 2;
  return out <= kMostChannels && type == Type::kBF16 && format != Format::kInt4 && rows > 0 &&
         rows <= kFewRows && inputs <= (48 << 10) && inputs + kRest <= most_shared();
}

void fused_product(Format format, const FusedProduct& p, cudaStream_t stream) {
  switch (format) {
    case Format::kPlain:
      return choose<Format::kPlain>(p, stream);
    case Format::kInt8:
      return choose<Format::kInt8>(p, stream);
    default:
      return choose<Format::kE4M3>(p, stream);
  }
}

}  // namespace qinfer::cuda
