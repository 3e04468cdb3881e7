// Products of many rows on Hopper, with what follows them: y = x W^T, scaled, biased, or gated by
// SiLU in the registers, so that the wide intermediate never reaches memory.
//
// Two blocks that work on neighbouring rows form a cluster: each fetches half of the weights' tile
// for both. One warp fetches ahead of two warpgroups that multiply 64 rows by 256 outputs each.
#include "hopper_products.h"
#include "matmul_tiles.cuh"

namespace qinfer::cuda {
namespace {

using namespace tiles;

template <class T, class Y, bool Gated>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_kernel(const __grid_constant__ Maps maps, const Sizes z, const Extras extras) {
#ifdef QINFER_HOPPER
  extern __shared__ unsigned char memory[];
  Shared& shared =
      *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(memory) + 1023) & ~uintptr_t(1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.here[i], 1);
      barrier_init(&shared.read[i], 4);  // two warpgroups of two blocks
    }
    barrier_fence();
  }
  cluster_sync();
  let_next_start();
  wait_for_previous();
  if (threadIdx.x < 128) {
    registers_down<24>();
    if (threadIdx.x == 0) fetch_all<T, Gated>(maps, z, shared);
  } else {
    registers_up<240>();
    Multiplier<T, Y, Gated>{shared, maps, z, extras}.run();
  }
  cluster_sync();  // a block's memory is written by the other one
#endif
}

template <class T>
constexpr CUtensorMapDataType kMapType = std::is_same_v<T, BF16>  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : std::is_same_v<T, F16> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                  : CU_TENSOR_MAP_DATA_TYPE_UINT8;

template <class T>
CUtensorMap map_of(const void* from, uint64_t rows, uint64_t width, uint32_t box_rows) {
  const uint64_t sizes[] = {width, rows}, strides[] = {width * sizeof(T)};
  const uint32_t box[] = {kBytes / sizeof(T), box_rows};
  return tensor_map(kMapType<T>, from, 2, sizes, strides, box);
}

template <class T, class Y, bool Gated>
void run(const Product& p, cudaStream_t stream) {
  constexpr size_t kShared = sizeof(Shared) + 1024;
  static_assert(kShared <= 232448);
  auto* kernel = matmul_kernel<T, Y, Gated>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "raising a kernel's shared memory");
  const int64_t width = Gated ? p.out / 2 : p.out;
  const Maps maps{map_of<T>(p.x, p.rows, p.in, kRows),
                  map_of<T>(p.weight, p.out, p.in, kOutputs / 2),
                  map_of<Y>(p.y, p.rows, width, kBox)};
  Sizes z{};
  z.rows = p.rows, z.in = p.in, z.out = width;
  z.second = Gated ? width : kOutputs / 2;
  z.steps = (p.in * sizeof(T) + kBytes - 1) / kBytes;
  z.row_tiles = (p.rows + 2 * kRows - 1) / (2 * kRows);
  const int each = Gated ? kOutputs / 2 : kOutputs;
  z.tiles = z.row_tiles * ((width + each - 1) / each);
  const int blocks = std::min(z.tiles * 2, multiprocessors() / 2 * 2);
  launch_clusters(kernel, dim3(blocks), 2, kThreads, kShared, stream, maps, z,
                  Extras{p.scale, p.x_scale, p.bias});
}

}  // namespace

bool matmul_hopper_suits(int64_t rows, int64_t in, int64_t out, bool gated) {
  if (!is_sm90() || in % 16 || out % 16) return false;
  const int64_t width = gated ? kOutputs / 2 : kOutputs, outs = gated ? out / 2 : out;
  const int64_t row_tiles = (rows + 2 * kRows - 1) / (2 * kRows);
  const int64_t tiles = row_tiles * ((outs + width - 1) / width), pairs = multiprocessors() / 2;
  const int64_t waves = (tiles + pairs - 1) / pairs;
  const double whole = double(rows) * outs / (2.0 * kRows * width);  // tiles, counted exactly
  return whole / double(waves * pairs) > (gated ? 0.85 : 0.75);
}

void matmul_hopper(Type type, bool is_e4m3, bool gated, const Product& p, cudaStream_t stream) {
  using E4M3 = __nv_fp8_e4m3;
  if (type == Type::kBF16) {
    if (is_e4m3)
      gated ? run<E4M3, BF16, true>(p, stream) : run<E4M3, BF16, false>(p, stream);
    else
      gated ? run<BF16, BF16, true>(p, stream) : run<BF16, BF16, false>(p, stream);
  } else {
    if (is_e4m3)
      gated ? run<E4M3, F16, true>(p, stream) : run<E4M3, F16, false>(p, stream);
    else
      gated ? run<F16, F16, true>(p, stream) : run<F16, F16, false>(p, stream);
  }
}

}  // namespace qinfer::cuda
