#include <algorithm>

#include "codes.cuh"
#include "gate.cuh"
#include "rounding.h"

namespace qinfer::cuda {
namespace {

constexpr int kMostThreads = 512;

// Eight numbers of a row as they are, or with what gates them.
template <class T, bool Gated>
struct Eight;
template <class T>
struct Eight<T, false> {
  uint4 numbers = {};
  __device__ __forceinline__ void load(const Rounding& r, int64_t row, int i) {
    if (i < r.width)
      numbers = *reinterpret_cast<const uint4*>(static_cast<const T*>(r.x) + row * r.width + i);
  }
  __device__ __forceinline__ uint4 value() const { return numbers; }
};
template <class T>
struct Eight<T, true> {
  uint4 gates = {}, ups = {};
  __device__ __forceinline__ void load(const Rounding& r, int64_t row, int i) {
    const T* at = static_cast<const T*>(r.x) + row * r.width * 2 + i;
    if (i >= r.width) return;
    gates = *reinterpret_cast<const uint4*>(at);
    ups = *reinterpret_cast<const uint4*>(at + r.width);
  }
  __device__ __forceinline__ uint4 value() const { return gate8<T>(gates, ups); }
};

template <class T, bool Gated>
__device__ __forceinline__ uint4 value_at(const Rounding& r, int64_t row, int i) {
  Eight<T, Gated> eight;
  eight.load(r, row, i);
  return eight.value();
}

// One block a row, the first Most vectors of eight of each thread kept in registers: all are asked
// for before the first is computed with.
template <class T, Code C, To Kind, bool Gated, int Most>
__global__ void __launch_bounds__(kMostThreads) row_kernel(const Rounding r) {
  let_next_start();
  wait_for_previous();
  const int own = threadIdx.x * 8, stride = blockDim.x * 8;
  const int64_t row = blockIdx.x, first = row * r.width;
  Eight<T, Gated> eights[Most];
  uint4 held[Most];
#pragma unroll
  for (int m = 0; m < Most; ++m) eights[m].load(r, row, own + m * stride);
#pragma unroll
  for (int m = 0; m < Most; ++m) held[m] = eights[m].value();
  float step;
  if (r.fixed) {
    step = *r.fixed;
  } else {
    float most = 0;
#pragma unroll
    for (int m = 0; m < Most; ++m) most = most_of<T>(held[m], most);
    for (int i = own + Most * stride; i < r.width; i += stride)
      most = most_of<T>(value_at<T, Gated>(r, row, i), most);
    step = step_of<C>(block_max(most));
  }
  if (threadIdx.x == 0) r.scale[row] = step;
#pragma unroll
  for (int m = 0; m < Most; ++m)
    if (own + m * stride < r.width)
      put8<T, C, Kind>(held[m], step, r.rounded, first + own + m * stride);
  for (int i = own + Most * stride; i < r.width; i += stride)
    put8<T, C, Kind>(value_at<T, Gated>(r, row, i), step, r.rounded, first + i);
}

constexpr int kRunThreads = 128;

// A block for each run of a row, whose numbers are multiplied with its scale again.
template <class T>
__global__ void __launch_bounds__(kRunThreads) run_kernel(const Rounding r) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const int first = int(blockIdx.y * r.run), end = int(min(first + r.run, r.width));
  float most = 0, v[8];
  for (int i = first + threadIdx.x * 8; i < end; i += kRunThreads * 8)
    most = most_of<T>(value_at<T, false>(r, row, i), most);
  constexpr Code C = Code::kE4M3;
  const float step = step_of<C>(block_max(most));
  for (int i = first + threadIdx.x * 8; i < end; i += kRunThreads * 8) {
    unpack8<T>(numbers8<T, C>(rounded8<T, C>(value_at<T, false>(r, row, i), step)), v);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] *= step;
    T* to = static_cast<T*>(r.rounded) + row * r.width + i;
    *reinterpret_cast<uint4*>(to) = pack8<T>(v);
  }
}

template <class T, Code C, To Kind, bool Gated>
void round_rows(const Rounding& r, cudaStream_t stream) {
  const int64_t vectors = (r.width + 7) / 8;
  const auto with = [&](auto* kernel, int64_t most) {
    const int64_t warps = std::min<int64_t>((vectors + 32 * most - 1) / (32 * most), 16);
    launch(kernel, dim3(r.rows), static_cast<int>(warps * 32), 0, stream, r);
  };
  if (vectors <= 256)
    with(row_kernel<T, C, Kind, Gated, 1>, 1);
  else
    with(row_kernel<T, C, Kind, Gated, 5>, 5);
}

template <class T>
void to_e4m3(const Rounding& r, cudaStream_t stream) {
  constexpr Code C = Code::kE4M3;
  if (r.run)
    launch(run_kernel<T>, dim3(r.rows, (r.width + r.run - 1) / r.run), kRunThreads, 0, stream, r);
  else if (r.as_bytes)
    r.gated ? round_rows<T, C, To::kBytes, true>(r, stream)
            : round_rows<T, C, To::kBytes, false>(r, stream);
  else
    r.gated ? round_rows<T, C, To::kRounded, true>(r, stream)
            : round_rows<T, C, To::kRounded, false>(r, stream);
}

template <class T>
void of_type(Code code, const Rounding& r, cudaStream_t stream) {
  if (code == Code::kInt8)
    round_rows<T, Code::kInt8, To::kRounded, false>(r, stream);
  else
    to_e4m3<T>(r, stream);
}

}  // namespace

void round_inputs(Type type, Code code, const Rounding& r, cudaStream_t stream) {
  if (!r.rows) return;
  type == Type::kBF16 ? of_type<BF16>(code, r, stream) : of_type<F16>(code, r, stream);
}

}  // namespace qinfer::cuda
