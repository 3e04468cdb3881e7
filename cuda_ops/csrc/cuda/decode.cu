// Attention of decoding, one query for each sequence, straight from the QKV product: norms of the
// heads, rotary embedding, the new key and value into the cache, and attention over all of it.
//
// Keys are dealt out to warps sixteen at a time. The heads that share a KV head are the rows of
// matrix instructions. A cluster of blocks puts its parts together through shared memory; several
// clusters work on one sequence only where it is long, and the last of them puts theirs together.
#include <algorithm>

#include "decode_attend.cuh"
#include "decode_merge.cuh"

namespace qinfer::cuda {
namespace {

using namespace decoding;

constexpr int kMostPairs = 1 << 16;
__device__ unsigned arrived[kMostPairs];  // blocks that are done; zero between launches

template <class T, Format F, int D>
__global__ void __launch_bounds__(kThreads) decode_kernel(const Arguments a) {
  extern __shared__ __align__(16) uint8_t memory[];
  let_next_start();
  auto& s = *reinterpret_cast<Shared<T, F, D>*>(memory);
  Token<T, F, D> token(a, s);
  Attend<T, F, D> attend(token);
  const Decode& p = a.d;
  const int rank = cluster_rank(), size = cluster_size(), cluster = blockIdx.x / size;
  const int turns = attend.turns, each = size * kWarps * kTurns;
  const int used = turns <= size * kWarps * kAlone ? 1 : min((turns + each - 1) / each, a.chunks);
  if (cluster >= used) return;
  cluster_arrive();  // others may write to this block's memory from now on
  attend.workers = used * size * kWarps;
  attend.worker = (cluster * size + rank) * kWarps + attend.warp;
  const int mine = (turns - attend.worker + attend.workers - 1) / attend.workers;
  int places[kStages];
#pragma unroll
  for (int turn = 0; turn < kStages; ++turn) places[turn] = turn < mine ? attend.place(turn) : -1;
  token.know();
  // Blocks of other sequences may hold what a neighbour in this step writes: a shared prefix.
  if (p.sequences > 1) wait_for_previous();
#pragma unroll
  for (int turn = 0; turn < kStages; ++turn) {
    if (turn < mine) attend.load(turn, places[turn]);
    commit();
  }
  const bool has_newest = (turns - 1) % attend.workers == attend.worker && token.length > 0;
  if (p.sequences == 1) wait_for_previous();
  auto fetched = token.fetch(has_newest);
  token.queries(fetched);
  __syncthreads();
  attend.take_queries();
  for (int turn = 0; turn < mine; ++turn) {
    const int following = turn + kStages < mine ? attend.place(turn + kStages) : -1;
    wait_for_copies<kStages - 1>();
    __syncwarp();
    if (has_newest && turn == mine - 1)
      token.newest(fetched, turn % kStages, (token.length - 1 - attend.begin) % kKeys);
    attend.look(turn);
    __syncwarp();
    if (turn + kStages < mine) attend.load(turn + kStages, following);
    commit();
  }
  wait_for_copies<0>();
  __syncthreads();
  attend.share(s.parts[attend.warp]);
  __syncthreads();
  const Merge<T, F, D> merge{s, token.group, size, rank};
  cluster_wait();
  merge.spread();
  cluster_arrive();
  cluster_wait();
  T* out = static_cast<T*>(p.out) + (int64_t(blockIdx.z) * a.heads + token.first_head) * D;
  if (used == 1)
    return merge.gather([&](int h, int d, float4 sum, float, float total) {
      merge.write(out + h * D + d, sum, total);
    });
  const int64_t pair = int64_t(blockIdx.z) * gridDim.y + blockIdx.y;
  float* scratch = p.scratch + pair * a.chunks * merge.kScratch;
  merge.gather([&](int h, int d, float4 sum, float top, float total) {
    float* to = scratch + cluster * merge.kScratch + h * (D + 2);
    to[d] = sum.x, to[d + 1] = sum.y, to[d + 2] = sum.z, to[d + 3] = sum.w;
    if (d == 0) to[D] = top, to[D + 1] = total;
  });
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&arrived[pair], 1u) == unsigned(used * size) - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  merge.gather_clusters(scratch, used, out);
  if (threadIdx.x == 0) arrived[pair] = 0;
}

int64_t pairs(const Decode& d) {
  const int64_t each = d.heads / d.kv_heads;
  return d.sequences * d.kv_heads * ((each + kHeads - 1) / kHeads);
}

// From sizes alone, as a recorded step is replayed with other lengths.
int cluster_of(const Decode& d) {
  if (!is_hopper()) return 1;
  int size = kMostCluster;
  while (size > 1 && pairs(d) * size > multiprocessors()) size /= 2;
  return size;
}

int chunks_of(const Decode& d) {
  if (pairs(d) > kMostPairs) return 1;
  const int64_t size = cluster_of(d), each = size * kWarps * kKeys * kTurns;
  const int64_t most = (d.width * d.block_size + each - 1) / each;
  return static_cast<int>(std::clamp<int64_t>(
      std::min(3 * multiprocessors() / (2 * pairs(d) * size), most), 1, kMostChunks));
}

template <class T, Format F, int D>
void run(const Decode& d, cudaStream_t stream) {
  const int64_t each = d.heads / d.kv_heads, groups = (each + kHeads - 1) / kHeads;
  const Arguments a{d,
                    static_cast<int>(d.heads),
                    static_cast<int>(d.kv_heads),
                    static_cast<int>(d.width),
                    static_cast<int>(d.block_size),
                    static_cast<int>(groups),
                    chunks_of(d)};
  constexpr size_t kShared = sizeof(Shared<T, F, D>);
  check(cudaFuncSetAttribute(decode_kernel<T, F, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kShared),
        "asking for shared memory");
  const int size = cluster_of(d);
  const dim3 grid(size * a.chunks, d.kv_heads * groups, d.sequences);
  launch_clusters(decode_kernel<T, F, D>, grid, size, kThreads, kShared, stream, a);
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
  const int chunks = chunks_of(d);
  return chunks == 1 ? 0 : pairs(d) * chunks * kHeads * (d.dim + 2);
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
