// Attention of many queries on Hopper, after FlashAttention-3 (arXiv:2407.08608): one warp fetches
// keys and values through the copy engine, two or three warpgroups multiply. While the matrix
// units work on a tile's scores and on the last tile's values, the softmax of another is computed.
#include "prefill_fetch.cuh"

namespace qinfer::cuda {
namespace {

#ifdef QINFER_HOPPER

constexpr float kNever = -1e30f;

__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T, int D>
struct Consumer {
  Shared<T, D>& shared;
  const Work& w;
  const float scale;
  const int window, groups_index, lane, row;
  int last_key[2];  // that this thread's two rows see
  float scores[kKeys / 2], sums[D / 2];
  uint32_t weights[kKeys / 16][4];
  float most[2], total[2], old[2];

  __device__ __forceinline__ Consumer(Shared<T, D>& memory, const Work& work, float unit, int seen)
      : shared(memory),
        w(work),
        scale(unit),
        window(seen),
        groups_index(threadIdx.x / 128 - 1),
        lane(threadIdx.x % 32),
        row(groups_index * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      last_key[half] = w.before + min((row + 8 * half) / w.group, w.count - 1);
      most[half] = kNever, total[half] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 2; ++i) sums[i] = 0;
  }

  // Issues the scores of a tile of keys.
  __device__ __forceinline__ void score(int stage) {
    products_begin();
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      multiply_shared<T, kKeys>(scores,
                                matrix(shared.queries[k / 4][groups_index * 64]) + k % 4 * 2,
                                matrix(shared.keys[stage][k / 4]) + k % 4 * 2, k > 0);
    products_commit();
  }

  // Issues the sums of a tile of values.
  __device__ __forceinline__ void mix(int stage) {
    products_begin();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
      multiply_turned<T, D>(sums, weights[k],
                            matrix(shared.values[stage], kKeys * 128) + k * (16 * 128 / 16));
    products_commit();
  }

  // Scores become weights (numbers of T come later, as `weights` may be in use); `old` is what
  // earlier sums are worth.
  __device__ __forceinline__ void soften(int tile) {
    const int first = tile * kKeys;
    if (first + kKeys > w.before + 1 || (window && first <= w.before + w.count - 1 - window))
      mask(first);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = most[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        top = fmaxf(top, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      old[half] = power2((most[half] - top) * scale);
      most[half] = top;
      // no key seen yet: kNever times scale is far from exact
      const float zero = top == kNever ? 0.0f : top * scale;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = scores[4 * n + 2 * half + i];
          x = power2(x * scale - zero);
          sum += x;
        }
      total[half] = total[half] * old[half] + sum;
    }
  }

  __device__ __forceinline__ void mask(int first) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first + n * 8 + lane % 4 * 2 + i % 2, last = last_key[i / 2];
        const bool seen = key <= last && (!window || key > last - window);
        scores[4 * n + i] = seen ? scores[4 * n + i] : kNever;
      }
  }

  __device__ __forceinline__ void rescale() {
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[4 * n + i] *= old[i / 2];
  }

  __device__ __forceinline__ void round() {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[k][i] = pack<T>(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
  }

  // Slots that were never written may hold NaN, which a weight of zero does not cancel.
  __device__ __forceinline__ void clear_values(int stage, int length) {
    for (int i = threadIdx.x % 128; i < kKeys * D / 8; i += 128) {
      const int key = i / 8 % kKeys, d = i / 8 / kKeys;
      if (w.last * kKeys + key >= length)
        *reinterpret_cast<uint4*>(&shared.values[stage][d][key][i % 8 * 8]) = {};
    }
    fence_for_async();
    named_sync(8 + groups_index, 128);
  }

  __device__ __forceinline__ void release(uint64_t* bar) {
    if (threadIdx.x % 128 == 0) barrier_arrive(bar);
  }

  __device__ __forceinline__ void run(int length) {
    barrier_wait(&shared.queries_here, 0);
    barrier_wait(&shared.keys_here[0], 0);
    score(0);
    products_wait<0>();
    hold(scores);
    release(&shared.keys_read[0]);
    soften(w.last);
    round();
    int stage = 0, parity = 0;
    for (int tile = w.last - 1; tile >= w.low; --tile) {
      int next = stage + 1, next_parity = parity;
      if (next == kStages) next = 0, next_parity ^= 1;
      barrier_wait(&shared.keys_here[next], next_parity);
      turn_wait();
      score(next);
      barrier_wait(&shared.values_here[stage], parity);
      if (tile == w.last - 1 && (w.last + 1) * kKeys > length) clear_values(stage, length);
      mix(stage);
      turn_pass();
      products_wait<1>();
      hold(scores);
      release(&shared.keys_read[next]);
      soften(tile);
      products_wait<0>();
      hold(sums);
      release(&shared.values_read[stage]);
      rescale();
      round();
      stage = next, parity = next_parity;
    }
    barrier_wait(&shared.values_here[stage], parity);
    if (w.last == w.low && (w.last + 1) * kKeys > length) clear_values(stage, length);
    mix(stage);
    products_wait<0>();
    hold(sums);
  }

  // The warpgroups take turns in issuing, so that one's softmax falls into another's products.
  __device__ __forceinline__ void turn_wait() { named_sync(1 + groups_index, 256); }
  __device__ __forceinline__ void turn_pass() {
    named_arrive(1 + (groups_index + 1) % kGroups<D>, 256);
  }

  __device__ __forceinline__ void store(const Heads& p) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = total[half];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const int at = row + 8 * half, query = at / w.group;
      if (query >= w.count) continue;
      const float factor = all > 0 ? 1.0f / all : 0.0f;  // no key: a sequence that is not there
      T* to = static_cast<T*>(p.out) + lane % 4 * 2 +
              (int64_t(w.first + query) * p.heads + w.kv * w.group + at % w.group) * D;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            pack<T>(sums[4 * n + 2 * half] * factor, sums[4 * n + 2 * half + 1] * factor);
    }
  }
};

#endif

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
