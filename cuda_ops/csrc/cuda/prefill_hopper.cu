// Attention of many queries on Hopper, after FlashAttention-3 (arXiv:2407.08608): one warp fetches
// keys and values through the copy engine, two or three warpgroups multiply. While the matrix
// units work on a tile's scores and on the last tile's values, the softmax of another is computed.
#include "prefill_multiply.cuh"

namespace qinfer::cuda {
namespace {

template <class T, int D>
__global__ void __launch_bounds__(128 * (kGroups<D> + 1), 1)
    hopper_kernel(const Heads p, const __grid_constant__ Maps maps) {
#ifdef QINFER_HOPPER
  extern __shared__ unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<T, D>*>((reinterpret_cast<uintptr_t>(memory) + 1023) &
                                                  ~uintptr_t(1023));
  if (threadIdx.x == 0) {
    barrier_init(&shared.queries_here, 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.keys_here[i], 1), barrier_init(&shared.values_here[i], 1);
      barrier_init(&shared.keys_read[i], kGroups<D>);
      barrier_init(&shared.values_read[i], kGroups<D>);
    }
    barrier_fence();
  }
  __syncthreads();
  let_next_start();
  wait_for_previous();
  Work w;
  if (!find_work(p, kRows<D>, w)) return;
  if (threadIdx.x < 128) {
    registers_down<D == 64 ? 32 : 24>();
    if (threadIdx.x < 32) fetch_all<T, D>(p, maps, w, shared);
  } else {
    registers_up<D == 64 ? 160 : 240>();
    Consumer<T, D> consumer(shared, w, p.scale, p.window);
    if (consumer.groups_index == kGroups<D> - 1) consumer.turn_pass();
    consumer.run(p.lengths[w.sequence]);
    consumer.store(p);
  }
#endif
}

template <class T, int D>
void run(const Paged& p, cudaStream_t stream) {
  constexpr auto kType =
      std::is_same_v<T, BF16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  constexpr size_t kShared = sizeof(Shared<T, D>) + 1024;
  check(cudaFuncSetAttribute(hopper_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kShared),
        "raising a kernel's shared memory");
  const uint64_t dim = D, heads = p.heads, kv_heads = p.kv_heads, tokens = p.tokens;
  const uint32_t group = p.heads / p.kv_heads, each = kRows<D> / group;
  Maps maps;
  {
    const uint64_t sizes[] = {dim, heads, tokens}, strides[] = {dim * 2, heads * dim * 2};
    const uint32_t box[] = {64, group, each};
    maps.queries = tensor_map(kType, p.queries, 3, sizes, strides, box);
  }
  const uint64_t size = p.block_size, row = kv_heads * dim * 2, blocks = p.blocks;
  const uint64_t sizes[] = {dim, kv_heads, size, blocks}, strides[] = {dim * 2, row, size * row};
  const uint32_t box[] = {64, 1, uint32_t(p.block_size < kKeys ? p.block_size : kKeys), 1};
  maps.keys = tensor_map(kType, p.keys, 4, sizes, strides, box);
  maps.values = tensor_map(kType, p.values, 4, sizes, strides, box);
  const dim3 grid(p.kv_heads, p.tokens / each + p.sequences);
  launch(hopper_kernel<T, D>, grid, 128 * (kGroups<D> + 1), kShared, stream, heads_of(p, 1), maps);
}

}  // namespace

bool prefill_hopper_knows(const Paged& p) {
  const bool whole_boxes =
      p.block_size % 8 == 0 && (p.block_size % kKeys == 0 || kKeys % p.block_size == 0);
  const int64_t group = p.heads / p.kv_heads;
  return is_sm90() && whole_boxes && p.held == Format::kPlain && group <= 64 &&
         p.tokens / (kRows<128> / group) + p.sequences <= 65535;
}

void prefill_hopper(Type type, const Paged& p, cudaStream_t stream) {
  if (type == Type::kBF16)
    p.dim == 64 ? run<BF16, 64>(p, stream) : run<BF16, 128>(p, stream);
  else
    p.dim == 64 ? run<F16, 64>(p, stream) : run<F16, 128>(p, stream);
}

}  // namespace qinfer::cuda
