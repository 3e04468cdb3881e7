#include "common.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMost = 8;  // vectors of eight a thread can hold: widths up to 16,384

// One block a row, which is read once and kept in registers.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const T* x, const T* residual, const T* weight, float eps, T* y, T* total,
                int width) {
  let_next_start();
  wait_for_previous();
  const int64_t row = int64_t(blockIdx.x) * width;
  float held[kMost][8], squares = 0;
#pragma unroll
  for (int v = 0; v < kMost; ++v) {
    const int i = (v * kThreads + threadIdx.x) * 8;
    if (i >= width) break;
    unpack8<T>(*reinterpret_cast<const uint4*>(x + row + i), held[v]);
    if (residual) {
      float more[8];
      unpack8<T>(*reinterpret_cast<const uint4*>(residual + row + i), more);
#pragma unroll
      for (int j = 0; j < 8; ++j) held[v][j] += more[j];
      const uint4 sum = pack8<T>(held[v]);
      *reinterpret_cast<uint4*>(total + row + i) = sum;
      unpack8<T>(sum, held[v]);  // the norm is of the sum as it is kept
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += held[v][j] * held[v][j];
  }
  __shared__ float sums[kThreads / 32];
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float all = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) all += sums[i];
  const float factor = rsqrtf(all / width + eps);
#pragma unroll
  for (int v = 0; v < kMost; ++v) {
    const int i = (v * kThreads + threadIdx.x) * 8;
    if (i >= width) break;
    float scale[8];
    unpack8<T>(*reinterpret_cast<const uint4*>(weight + i), scale);
#pragma unroll
    for (int j = 0; j < 8; ++j) held[v][j] *= factor * scale[j];
    *reinterpret_cast<uint4*>(y + row + i) = pack8<T>(held[v]);
  }
}

template <class T>
void run(const void* x, const void* residual, const void* weight, float eps, void* y, void* total,
         int64_t rows, int64_t width, cudaStream_t stream) {
  launch(norm_kernel<T>, dim3(rows), kThreads, 0, stream, static_cast<const T*>(x),
         static_cast<const T*>(residual), static_cast<const T*>(weight), eps, static_cast<T*>(y),
         static_cast<T*>(total), static_cast<int>(width));
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
