// Products for few rows: the weights stream from memory straight into registers, once, and the
// matrix units multiply, so that up to 64 rows cost little more than one.
#include "linear_stream.cuh"

namespace qinfer::cuda {
namespace {

using namespace streaming;

template <class T, Format F, class S>
__global__ void __launch_bounds__(S::kW * 32, S::kN == 1 ? 32 / S::kW : 1)
    stream_kernel(const Arguments p) {
  __shared__ float shared[S::kW][S::kSums];
  let_next_start();
  Stream<T, F, S> stream(p);
  stream.run();
#pragma unroll
  for (int r = 0; r < S::kR; ++r)
#pragma unroll
    for (int n = 0; n < S::kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        shared[stream.warp][((r * S::kN + n) * 4 + i) * 32 + stream.lane] = stream.sums[r][n][i];
  __syncthreads();
  for (int i = threadIdx.x; i < S::kSums; i += S::kW * 32) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < S::kW; ++w) sum += shared[w][i];
    stream.finish(i, sum);
  }
}

template <class T, Format F, class S>
void run(const Product& p, cudaStream_t stream) {
  const Arguments a{p.x,
                    static_cast<const uint8_t*>(p.weight),
                    p.scale,
                    p.x_scale,
                    p.bias,
                    p.y,
                    static_cast<int>(p.rows),
                    static_cast<int>(p.in),
                    static_cast<int>(p.out)};
  const int64_t blocks = (p.out + S::kR * 16 - 1) / (S::kR * 16);
  launch(stream_kernel<T, F, S>, dim3(blocks), S::kW * 32, 0, stream, a);
}

// Few channels: more warps for each, as long as every one has two turns or so.
template <class T, Format F>
void few_rows(const Product& p, cudaStream_t stream) {
  constexpr int kU = F == Format::kInt4 ? 1 : 2;
  const int64_t steps = p.in / (4 * Held<F>::kNumbers), tiles = p.out / 16;
  if (tiles < 2 * multiprocessors() && steps >= 16 * kU)
    run<T, F, Shape<1, 1, 16, kU>>(p, stream);
  else if (steps >= 8 * kU)
    run<T, F, Shape<1, 1, 8, kU>>(p, stream);
  else
    run<T, F, Shape<1, 1, 4, kU>>(p, stream);
}

template <class T, Format F>
void choose(const Product& p, cudaStream_t stream) {
  if (p.rows <= 8)
    few_rows<T, F>(p, stream);
  else if (p.rows <= 16)
    run<T, F, Shape<2, 2, 8, 1>>(p, stream);
  else if (p.rows <= 32)
    run<T, F, Shape<4, 2, 4, 1>>(p, stream);
  else
    run<T, F, Shape<8, 2, 4, 1>>(p, stream);
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

}  // namespace

void product(Type type, Format format, const Product& p, cudaStream_t stream) {
  if (!p.rows) return;
  if (type == Type::kBF16)
    of_format<BF16>(format, p, stream);
  else
    of_format<F16>(format, p, stream);
}

}  // namespace qinfer::cuda
