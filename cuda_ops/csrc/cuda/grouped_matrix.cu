// Many rows for each expert: tiles of 256 channels by 64 rows. Weights travel as they are held,
// through shared memory, and become operands in registers, so that every format reads its own
// bytes only.
#include "grouped_tiles.cuh"

namespace qinfer::cuda {
namespace {

using namespace experts;

template <class T, Format F, bool Groups>
__global__ void __launch_bounds__(kThreads, 2) matrix_kernel(const Grouped p) {
  extern __shared__ __align__(128) uint8_t memory[];
  let_next_start();
  wait_for_previous();
  const Tile tile = tile_of(p, blockIdx.x, kRows);
  if (tile.count <= 0) return;
  __shared__ Rows rows;
  if (threadIdx.x < kRows) {
    const int pair = pair_of(p, tile, threadIdx.x);
    rows.pair[threadIdx.x] = pair;
    rows.scale[threadIdx.x] = p.x_scale && pair >= 0 ? p.x_scale[pair / p.repeats] : 1.0f;
  }
  __syncthreads();
  Matrix<T, F, Groups> matrix(p, tile, memory, rows);
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
