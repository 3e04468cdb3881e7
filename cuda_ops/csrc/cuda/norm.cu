// Root-mean-square norm of each row, of a sum if there is one, and its rounding to e4m3.
#include "codes.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kMostThreads = 256;

template <class T>
struct Arguments {
  const T *x, *residual, *weight;
  float eps;
  void* y;
  T* total;
  float* scale;  // of rounded rows
  int width;
};

__device__ __forceinline__ float block_sum(float x) {
  __shared__ float sums[kMostThreads / 32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float all = 0;
  for (int i = 0; i < blockDim.x / 32; ++i) all += sums[i];
  return all;
}

// One block a row, which is read once and kept in registers: Most vectors of eight a thread.
template <class T, int Most, To Kind>
__global__ void __launch_bounds__(kMostThreads) norm_kernel(const Arguments<T> p) {
  let_next_start();
  wait_for_previous();
  const int64_t row = int64_t(blockIdx.x) * p.width;
  uint4 held[Most];
  float squares = 0, v[8];
#pragma unroll
  for (int m = 0; m < Most; ++m) {
    const int i = (m * blockDim.x + threadIdx.x) * 8;
    if (i < p.width) held[m] = *reinterpret_cast<const uint4*>(p.x + row + i);
  }
#pragma unroll
  for (int m = 0; m < Most; ++m) {
    const int i = (m * blockDim.x + threadIdx.x) * 8;
    if (i >= p.width) break;
    unpack8<T>(held[m], v);
    if (p.residual) {
      float more[8];
      unpack8<T>(*reinterpret_cast<const uint4*>(p.residual + row + i), more);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] += more[j];
      held[m] = pack8<T>(v);
      *reinterpret_cast<uint4*>(p.total + row + i) = held[m];
      unpack8<T>(held[m], v);  // the norm is of the sum as it is kept
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += v[j] * v[j];
  }
  const float factor = rsqrtf(block_sum(squares) / p.width + p.eps);
  float most = 0;
#pragma unroll
  for (int m = 0; m < Most; ++m) {
    const int i = (m * blockDim.x + threadIdx.x) * 8;
    if (i >= p.width) break;
    float scale[8];
    unpack8<T>(*reinterpret_cast<const uint4*>(p.weight + i), scale);
    unpack8<T>(held[m], v);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] *= factor * scale[j];
    held[m] = pack8<T>(v);
    if constexpr (Kind == To::kNumbers)
      *reinterpret_cast<uint4*>(static_cast<T*>(p.y) + row + i) = held[m];
    else
      most = most_of<T>(held[m], most);
  }
  if constexpr (Kind != To::kNumbers) {
    const float step = step_of<Code::kE4M3>(block_max(most));
    if (threadIdx.x == 0) p.scale[blockIdx.x] = step;
#pragma unroll
    for (int m = 0; m < Most; ++m) {
      const int i = (m * blockDim.x + threadIdx.x) * 8;
      if (i < p.width) put8<T, Code::kE4M3, Kind>(held[m], step, p.y, row + i);
    }
  }
}

template <class T, To Kind>
void run(const Norm& n, cudaStream_t stream) {
  const Arguments<T> p{static_cast<const T*>(n.x),
                       static_cast<const T*>(n.residual),
                       static_cast<const T*>(n.weight),
                       n.eps,
                       n.y,
                       static_cast<T*>(n.total),
                       n.scale,
                       static_cast<int>(n.width)};
  const auto with = [&](auto* kernel, int most) {
    const int threads = static_cast<int>((n.width + 256 * most - 1) / (256 * most) * 32);
    launch(kernel, dim3(n.rows), threads, 0, stream, p);
  };
  if (n.width <= kMostThreads * 8)
    with(norm_kernel<T, 1, Kind>, 1);
  else if (n.width <= kMostThreads * 16)
    with(norm_kernel<T, 2, Kind>, 2);
  else
    with(norm_kernel<T, 8, Kind>, 8);  // up to 16,384
}

template <class T>
void of_type(const Norm& n, cudaStream_t stream) {
  if (!n.scale)
    run<T, To::kNumbers>(n, stream);
  else if (n.as_bytes)
    run<T, To::kBytes>(n, stream);
  else
    run<T, To::kRounded>(n, stream);
}

}  // namespace

void rms_norm(Type type, const Norm& n, cudaStream_t stream) {
  if (!n.rows) return;
  type == Type::kBF16 ? of_type<BF16>(n, stream) : of_type<F16>(n, stream);
}

}  // namespace qinfer::cuda
