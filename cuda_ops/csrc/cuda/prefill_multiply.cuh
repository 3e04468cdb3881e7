// Attention of prompts on Hopper: what a warpgroup multiplies, and the softmax between.
#pragma once
#include "prefill_fetch.cuh"

namespace qinfer::cuda {

#ifdef QINFER_HOPPER

constexpr float kNever = -1e30f;

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

}  // namespace qinfer::cuda
