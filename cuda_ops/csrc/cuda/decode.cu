// Attention of decoding, one query for each sequence, straight from the QKV product: norms of the
// heads, rotary embedding, the new key and value into the cache, and attention over all of it.
//
// Keys are dealt out to warps sixteen at a time: rows of matrix instructions, whose columns are the
// heads that share a KV head. A cluster of blocks puts its parts together through shared memory;
// several clusters work on one sequence only where it is long, and the last of them puts theirs
// together.
#include <algorithm>

#include "decode_attend.cuh"
#include "decode_merge.cuh"
#include "decode_token.cuh"

namespace qinfer::cuda {
namespace {

using namespace decoding;

constexpr int kMostPairs = 1 << 16;
__device__ unsigned arrived[kMostPairs];  // blocks that are done; zero between launches

// Of clusters that work on one sequence, each of which has left its part in `scratch`, the last to
// come makes the answer.
template <class M, class T>
__device__ __forceinline__ void finish(const M& merge, const float* scratch, int64_t pair, int used,
                                       T* out) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  const unsigned blocks = used << merge.bits;
  if (threadIdx.x == 0) is_last = atomicAdd(&arrived[pair], 1u) == blocks - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  merge.join_clusters(scratch, used, out);
  if (threadIdx.x == 0) arrived[pair] = 0;
}

template <class T, Format F, int D, class P>
__global__ void __launch_bounds__(P::kThreads, 512 / P::kThreads) decode_kernel(const Arguments a) {
  extern __shared__ __align__(16) uint8_t memory[];
  auto& s = *reinterpret_cast<Shared<T, F, D, P>*>(memory);
  Token<T, F, D, P> token(a, s);
  const Turns<P> turns(a);
  if (turns.cluster >= turns.used) return;
  const Merge<T, F, D, P> merge{s, token.group, turns.bits, turns.rank};
  merge.prepare();
  cluster_arrive_early();  // others may send to this block from now on
  Attend<T, F, D, P> attend(turns, s, token.kv);
  token.know(turns.has_newest());
  // Blocks of other sequences may hold what a neighbour in this step writes: a shared prefix.
  if (a.d.sequences > 1) wait_for_previous();
  attend.start();
  let_next_start();  // whose weights shall come after the keys
  if (a.d.sequences == 1) wait_for_previous();
  token.take();
  __syncthreads();
  attend.take_queries();
  attend.run();
  attend.share();
  cluster_wait();
  __syncthreads();
  T* out = static_cast<T*>(a.d.out) + (int64_t(blockIdx.z) * a.heads + token.first_head) * D;
  const int64_t pair = int64_t(blockIdx.z) * gridDim.y + blockIdx.y;
  float* scratch = a.d.scratch + pair * a.chunks * merge.kScratch;
  merge.run([&](int h, int d, const Joined& all) {
    if (turns.used == 1) return merge.write(out + h * D + d, all);
    float* to = scratch + turns.cluster * merge.kScratch + h * merge.kEach;
    *reinterpret_cast<float4*>(to + d) = all.sum;
    if (d == 0) *reinterpret_cast<float2*>(to + D) = all.rest;
  });
  if (turns.used > 1) finish(merge, scratch, pair, turns.used, out);
}

int64_t pairs(const Decode& d) {
  const int64_t each = d.heads / d.kv_heads;
  return d.sequences * d.kv_heads * ((each + kHeads - 1) / kHeads);
}

// One sequence or a few have the card to themselves, and all their keys on the way at once. Many
// have smaller blocks, so that more of them fit.
using Few = Shape<3>;
using Many = Shape<2>;

// How sequences are laid out: from sizes alone, as a recorded step is replayed with other lengths.
struct Layout {
  bool are_few = false;
  int cluster = 1, chunks = 1;

  explicit Layout(const Decode& d) {
    if (is_hopper()) {
      for (cluster = kMostCluster; cluster > 1 && pairs(d) * cluster > multiprocessors();)
        cluster /= 2;
      are_few = 2 * pairs(d) * cluster <= multiprocessors();
    }
    if (pairs(d) > kMostPairs) return;
    const int64_t warps = cluster * (are_few ? Few::kWarps : Many::kWarps);
    const int64_t each = warps * kKeys << kTurnBits, room = d.width * d.block_size;
    const int64_t most = 3 * multiprocessors() / (2 * pairs(d) * cluster);
    chunks = static_cast<int>(
        std::clamp<int64_t>(std::min(most, (room + each - 1) / each), 1, kMostChunks));
  }
};

template <class T, Format F, int D, class P>
void run(const Decode& d, const Layout& layout, cudaStream_t stream) {
  const int64_t each = d.heads / d.kv_heads, groups = (each + kHeads - 1) / kHeads;
  const Arguments a{d,
                    static_cast<int>(d.heads),
                    static_cast<int>(d.kv_heads),
                    static_cast<int>(d.width),
                    layout.chunks,
                    static_cast<int>(each),
                    Divisor(d.block_size),
                    Divisor(groups)};
  constexpr size_t kShared = sizeof(Shared<T, F, D, P>);
  const auto kernel = decode_kernel<T, F, D, P>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "asking for shared memory");
  const dim3 grid(layout.cluster * layout.chunks, d.kv_heads * groups, d.sequences);
  launch_clusters(kernel, grid, layout.cluster, P::kThreads, kShared, stream, a);
}

template <class T, Format F, int D>
void run(const Decode& d, cudaStream_t stream) {
  const Layout layout(d);
  (layout.are_few ? run<T, F, D, Few> : run<T, F, D, Many>)(d, layout, stream);
}

template <class T, Format F>
void of_dim(const Decode& d, cudaStream_t stream) {
  switch (d.dim) {
    case 16:
      return run<T, F, 16>(d, stream);
    case 32:
      return run<T, F, 32>(d, stream);
    case 64:
      return run<T, F, 64>(d, stream);
    default:
      return run<T, F, 128>(d, stream);
  }
}

template <class T>
void of_cache(const Decode& d, cudaStream_t stream) {
  switch (d.held) {
    case Format::kInt8:
      return of_dim<T, Format::kInt8>(d, stream);
    case Format::kE4M3:
      return of_dim<T, Format::kE4M3>(d, stream);
    default:
      return of_dim<T, Format::kPlain>(d, stream);
  }
}

}  // namespace

bool decode_knows(int64_t dim) { return dim == 16 || dim == 32 || dim == 64 || dim == 128; }

int64_t decode_scratch(const Decode& d) {
  const int chunks = Layout(d).chunks;
  return chunks == 1 ? 0 : pairs(d) * chunks * kHeads * (d.dim + 4);
}

void decode(Type type, const Decode& d, cudaStream_t stream) {
  if (!d.sequences) return;
  Decode scaled = d;
  scaled.scale *= 1.4426950408889634f;  // scores in units of log 2
  if (type == Type::kBF16)
    of_cache<BF16>(scaled, stream);
  else
    of_cache<F16>(scaled, stream);
}

}  // namespace qinfer::cuda
