#include "common.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kMostThreads = 256;

// One block a row, which is read once and kept in registers: Most vectors of eight a thread.
template <class T, int Most>
__global__ void __launch_bounds__(kMostThreads)
    norm_kernel(const T* x, const T* residual, const T* weight, float eps, T* y, T* total,
                int width) {
  let_next_start();
  wait_for_previous();
  const int64_t row = int64_t(blockIdx.x) * width;
  uint4 held[Most];
  float squares = 0, v[8];
#pragma unroll
  for (int m = 0; m < Most; ++m) {
    const int i = (m * blockDim.x + threadIdx.x) * 8;
    if (i < width) held[m] = *reinterpret_cast<const uint4*>(x + row + i);
  }
#pragma unroll
  for (int m = 0; m < Most; ++m) {
    const int i = (m * blockDim.x + threadIdx.x) * 8;
    if (i >= width) break;
    unpack8<T>(held[m], v);
    if (residual) {
      float more[8];
      unpack8<T>(*reinterpret_cast<const uint4*>(residual + row + i), more);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] += more[j];
      held[m] = pack8<T>(v);
      *reinterpret_cast<uint4*>(total + row + i) = held[m];
      unpack8<T>(held[m], v);  // the norm is of the sum as it is kept
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += v[j] * v[j];
  }
  __shared__ float sums[kMostThreads / 32];
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float all = 0;
  for (int i = 0; i < blockDim.x / 32; ++i) all += sums[i];
  const float factor = rsqrtf(all / width + eps);
#pragma unroll
  for (int m = 0; m < Most; ++m) {
    const int i = (m * blockDim.x + threadIdx.x) * 8;
    if (i >= width) break;
    float scale[8];
    unpack8<T>(*reinterpret_cast<const uint4*>(weight + i), scale);
    unpack8<T>(held[m], v);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] *= factor * scale[j];
    *reinterpret_cast<uint4*>(y + row + i) = pack8<T>(v);
  }
}

template <class T>
void run(const void* x, const void* residual, const void* weight, float eps, void* y, void* total,
         int64_t rows, int64_t width, cudaStream_t stream) {
  const auto with = [&](auto* kernel, int most) {
    const int threads = static_cast<int>((width + 256 * most - 1) / (256 * most) * 32);
    launch(kernel, dim3(rows), threads, 0, stream, static_cast<const T*>(x),
           static_cast<const T*>(residual), static_cast<const T*>(weight), eps, static_cast<T*>(y),
           static_cast<T*>(total), static_cast<int>(width));
  };
  if (width <= kMostThreads * 8)
    with(norm_kernel<T, 1>, 1);
  else if (width <= kMostThreads * 16)
    with(norm_kernel<T, 2>, 2);
  else
    with(norm_kernel<T, 8>, 8);  // up to 16,384
}

}  // namespace

void rms_norm(Type type, const void* x, const void* residual, const void* weight, float eps,
              void* y, void* total, int64_t rows, int64_t width, cudaStream_t stream) {
  if (!rows) return;
  if (type == Type::kBF16)
    run<BF16>(x, residual, weight, eps, y, total, rows, width, stream);
  else
    run<F16>(x, residual, weight, eps, y, total, rows, width, stream);
}

}  // namespace qinfer::cuda
