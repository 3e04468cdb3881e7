// Attention of many queries of a sequence at once, after FlashAttention-2 (arXiv:2307.08691):
// 64 queries of one head a block, keys and values in tiles of 64 through shared memory.
#include "prefill_tiles.cuh"

namespace qinfer::cuda {
namespace {

using namespace prompts;

template <class T, Format H, int D>
__global__ void __launch_bounds__(kThreads) prefill_kernel(const Heads p) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* tiles = reinterpret_cast<T*>(memory);  // keys, values, keys, values; queries at first
  constexpr int kSize = kTile * D;
  let_next_start();
  wait_for_previous();
  Prefill<T, H, D> own(p);
  if (!own.find()) return;
  const int keys = own.before + own.count;  // that the last query of the tile sees
  const int first = p.window ? max(own.before + 1 - p.window, 0) / kTile * kTile : 0;
  own.fetch_queries(tiles + 2 * kSize);
  commit();
  own.fetch(tiles, p.keys, p.key_scales, first, keys);
  own.fetch(tiles + kSize, p.values, p.value_scales, first, keys);
  commit();
  wait_for_copies<1>();
  __syncthreads();
  own.take_queries(tiles + 2 * kSize);
  for (int key = first, turn = 0; key < keys; key += kTile, turn ^= 1) {
    __syncthreads();  // the other pair of tiles has been read by all
    T* other = tiles + (turn ^ 1) * 2 * kSize;
    if (key + kTile < keys) {
      own.fetch(other, p.keys, p.key_scales, key + kTile, keys);
      own.fetch(other + kSize, p.values, p.value_scales, key + kTile, keys);
    }
    commit();
    wait_for_copies<1>();
    __syncthreads();
    T* now = tiles + turn * 2 * kSize;
    float s[8][4] = {};
    own.scores(now, s);
    own.soften(s, key);
    own.mix(now + kSize, s);
  }
  own.store();
}

template <class T, Format H, int D>
void run(const Paged& p, cudaStream_t stream) {
  constexpr size_t kShared = 4 * kTile * D * sizeof(T);
  auto* kernel = prefill_kernel<T, H, D>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "raising a kernel's shared memory");
  const dim3 grid(p.tokens / kTile + p.sequences, p.heads);
  launch(kernel, grid, kThreads, kShared, stream, heads_of(p, 1));
}

template <class T, Format H>
void of_dim(const Paged& p, cudaStream_t stream) {
  if (p.dim == 64)
    run<T, H, 64>(p, stream);
  else
    run<T, H, 128>(p, stream);
}

template <class T>
void of_cache(const Paged& p, cudaStream_t stream) {
  if (p.held == Format::kPlain)
    of_dim<T, Format::kPlain>(p, stream);
  else if (p.held == Format::kInt8)
    of_dim<T, Format::kInt8>(p, stream);
  else
    of_dim<T, Format::kE4M3>(p, stream);
}

}  // namespace

bool prefill_knows(int64_t dim) { return dim == 64 || dim == 128; }

void prefill(Type type, const Paged& p, cudaStream_t stream) {
  if (prefill_hopper_knows(p))
    prefill_hopper(type, p, stream);
  else if (type == Type::kBF16)
    of_cache<BF16>(p, stream);
  else
    of_cache<F16>(p, stream);
}

}  // namespace qinfer::cuda
