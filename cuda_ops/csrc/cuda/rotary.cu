#include "common.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 128;

// One thread turns one pair of dimensions of one head, or copies that pair of a value.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const T* qkv, const float* table, const int64_t* at, const int64_t* slots,
                  T* keys, T* values, T* queries, int heads, int kv_heads, int dim) {
  let_next_start();
  wait_for_previous();
  const int half = dim / 2, all = heads + 2 * kv_heads;
  const int i = blockIdx.y * kThreads + threadIdx.x;
  if (i >= all * half) return;
  const int64_t token = blockIdx.x;
  const int head = i / half, d = i % half;
  const int64_t slot = slots[token];
  const T* from = qkv + token * all * dim + head * dim + d;
  T low = from[0], high = from[half];
  T* to;
  if (head < heads + kv_heads) {
    const float* cos = table + at[token] * 2 * dim + d;
    const float* sin = cos + dim;
    const float a = number(low), b = number(high);
    low = T(a * cos[0] + b * sin[0]);
    high = T(b * cos[half] + a * sin[half]);
    to = head < heads ? queries + (token * heads + head) * dim
                      : keys + (slot * kv_heads + head - heads) * dim;
  } else {
    to = values + (slot * kv_heads + head - heads - kv_heads) * dim;
  }
  if (head >= heads && slot < 0) return;
  to[d] = low, to[d + half] = high;
}

template <class T>
void run(const Rotary& r, cudaStream_t stream) {
  const int64_t pairs = (r.heads + 2 * r.kv_heads) * r.dim / 2;
  launch(rotary_kernel<T>, dim3(r.tokens, (pairs + kThreads - 1) / kThreads), kThreads, 0, stream,
         static_cast<const T*>(r.qkv), r.table, r.at, r.slots, static_cast<T*>(r.keys),
         static_cast<T*>(r.values), static_cast<T*>(r.queries), static_cast<int>(r.heads),
         static_cast<int>(r.kv_heads), static_cast<int>(r.dim));
}

}  // namespace

void rotary_kv_write(Type type, const Rotary& r, cudaStream_t stream) {
  if (!r.tokens) return;
  if (type == Type::kBF16)
    run<BF16>(r, stream);
  else
    run<F16>(r, stream);
}

}  // namespace qinfer::cuda
