// Packing int4 weights, unpacking weights for products of many rows, and rounding activations.
#include <cuda_fp8.h>

#include <algorithm>
#include <type_traits>

#include "weights.cuh"

namespace qinfer::cuda {
namespace {

constexpr int kThreads = 256;

// Where weight `in` of a channel lies: each 128 inputs are two groups; thread t of the four that
// share a channel holds inputs 16 t to 16 t + 15 of both, eight to a word, pairs 16 bits apart.
struct Nibble {
  int64_t byte;
  int shift;
};
__host__ __device__ inline Nibble nibble(int64_t in) {
  const int64_t block = in / 128, group = in / 64 % 2, t = in % 64 / 16, e = in % 16;
  const int64_t byte = block * 64 + t * 16 + group * 8 + e / 8 * 4 + e % 2 * 2 + e % 8 / 4;
  return {byte, static_cast<int>(e % 4 / 2 * 4)};
}

__global__ void pack_kernel(const int8_t* weight, uint8_t* packed, int64_t in, int64_t row_bytes) {
  const int64_t channel = blockIdx.x;
  for (int64_t b = threadIdx.x; b < row_bytes / 4; b += blockDim.x) {
    // one word: eight inputs in a row
    const int64_t block = b / 16, t = b % 16 / 4, group = b % 4 / 2, half = b % 2;
    const int64_t first = block * 128 + group * 64 + t * 16 + half * 8;
    uint32_t word = 0;
    for (int e = 0; e < 8; ++e) {
      const int value = first + e < in ? weight[channel * in + first + e] : 0;
      word |= uint32_t((value + 8) & 15) << (e / 2 * 4 + e % 2 * 16);
    }
    *reinterpret_cast<uint32_t*>(packed + channel * row_bytes + b * 4) = word;
  }
}

template <class T, Format F>
__global__ void dequantise_kernel(const uint8_t* weight, const float* scale, T* w, int64_t in,
                                  int64_t row_bytes) {
  wait_for_previous();
  const int64_t channel = blockIdx.x;
  const int64_t i = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * 8;
  if (i >= in) return;
  const uint8_t* row = weight + channel * row_bytes;
  uint32_t words[4];
  float factor;
  if constexpr (F == Format::kInt4) {
    const Nibble at = nibble(i);
    const uint32_t bits = *reinterpret_cast<const uint32_t*>(row + at.byte);
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = from_nibbles<T>(bits >> (4 * j));
    factor = scale[channel * (in / 64) + i / 64];
  } else {
    const uint2 bytes = *reinterpret_cast<const uint2*>(row + i);
    if constexpr (F == Format::kInt8) {
      from_int8<T>(bytes.x, words[0], words[1]);
      from_int8<T>(bytes.y, words[2], words[3]);
    } else {
      from_e4m3<T>(bytes.x, words[0], words[1]);
      from_e4m3<T>(bytes.y, words[2], words[3]);
    }
    factor = scale[channel];
  }
  float numbers[8];
  unpack8<T>({words[0], words[1], words[2], words[3]}, numbers);
#pragma unroll
  for (int j = 0; j < 8; ++j) numbers[j] *= factor;
  *reinterpret_cast<uint4*>(w + channel * in + i) = pack8<T>(numbers);
}

constexpr int kMostThreads = 512;

// A row's largest magnitude, from what its block's threads have found.
__device__ __forceinline__ float block_max(float most) {
  __shared__ float found[kMostThreads / 32];
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = most;
  __syncthreads();
  for (int i = 0; i < blockDim.x / 32; ++i) most = fmaxf(most, found[i]);
  return most;
}

// Eight numbers over a step, rounded to e4m3: as bytes, or as numbers of T. Divided, not multiplied
// with the inverse: 16-bit numbers fall halfway between two codes often enough for it to show.
template <class T, bool Bytes>
__device__ __forceinline__ void put_rounded(const uint4& from, float step, void* to, int64_t at) {
  float v[8];
  unpack8<T>(from, v);
  uint32_t bytes[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    const __nv_fp8x2_storage_t codes = __nv_cvt_float2_to_fp8x2(
        make_float2(__fdiv_rn(v[j], step), __fdiv_rn(v[j + 1], step)), __NV_SATFINITE, __NV_E4M3);
    bytes[j / 4] |= uint32_t(codes) << (j % 4 * 8);
  }
  if constexpr (Bytes) {
    *reinterpret_cast<uint2*>(static_cast<uint8_t*>(to) + at) = {bytes[0], bytes[1]};
  } else {
    uint4 out;
    from_e4m3<T>(bytes[0], out.x, out.y);
    from_e4m3<T>(bytes[1], out.z, out.w);
    *reinterpret_cast<uint4*>(static_cast<T*>(to) + at) = out;
  }
}

// One block a row, the first Most vectors of eight of each thread kept in registers.
template <class T, bool Bytes, int Most>
__global__ void __launch_bounds__(kMostThreads)
    quantise_kernel(const T* x, void* rounded, float* scale, int width) {
  let_next_start();
  wait_for_previous();
  const int64_t row = int64_t(blockIdx.x) * width;
  const int own = threadIdx.x * 8, stride = blockDim.x * 8;
  uint4 held[Most];
  float most = 0, v[8];
#pragma unroll
  for (int m = 0; m < Most; ++m)
    held[m] = own + m * stride < width ? *reinterpret_cast<const uint4*>(x + row + own + m * stride)
                                       : uint4{};
  const auto look = [&](const uint4& numbers) {
    unpack8<T>(numbers, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(v[j]));
  };
#pragma unroll
  for (int m = 0; m < Most; ++m) look(held[m]);
  for (int i = own + Most * stride; i < width; i += stride)
    look(*reinterpret_cast<const uint4*>(x + row + i));
  most = fmaxf(block_max(most), 448e-30f);
  const float step = __fdiv_rn(most, 448.0f);
  if (threadIdx.x == 0) scale[blockIdx.x] = step;
#pragma unroll
  for (int m = 0; m < Most; ++m)
    if (own + m * stride < width)
      put_rounded<T, Bytes>(held[m], step, rounded, row + own + m * stride);
  for (int i = own + Most * stride; i < width; i += stride)
    put_rounded<T, Bytes>(*reinterpret_cast<const uint4*>(x + row + i), step, rounded, row + i);
}

template <class T>
void unpack_weight(Format format, const void* weight, const float* scale, void* w, int64_t out,
                   int64_t in, cudaStream_t stream) {
  const dim3 grid(out, (in + kThreads * 8 - 1) / (kThreads * 8));
  const auto* from = static_cast<const uint8_t*>(weight);
  auto* to = static_cast<T*>(w);
  if (format == Format::kInt4)
    launch(dequantise_kernel<T, Format::kInt4>, grid, kThreads, 0, stream, from, scale, to, in,
           int4_bytes(1, in));
  else if (format == Format::kInt8)
    launch(dequantise_kernel<T, Format::kInt8>, grid, kThreads, 0, stream, from, scale, to, in, in);
  else
    launch(dequantise_kernel<T, Format::kE4M3>, grid, kThreads, 0, stream, from, scale, to, in, in);
}

template <class T, bool Bytes>
void round_rows(const void* x, void* rounded, float* scale, int64_t rows, int64_t width,
                cudaStream_t stream) {
  const int64_t vectors = (width + 7) / 8;
  const auto with = [&](auto* kernel, int64_t most) {
    const int64_t warps = std::min<int64_t>((vectors + 32 * most - 1) / (32 * most), 16);
    launch(kernel, dim3(rows), static_cast<int>(warps * 32), 0, stream, static_cast<const T*>(x),
           rounded, scale, static_cast<int>(width));
  };
  if (vectors <= 256)
    with(quantise_kernel<T, Bytes, 1>, 1);
  else
    with(quantise_kernel<T, Bytes, 5>, 5);
}

}  // namespace

int64_t int4_bytes(int64_t out, int64_t in) { return out * ((in + 127) / 128) * 64; }

void pack_int4(const int8_t* weight, uint8_t* packed, int64_t out, int64_t in,
               cudaStream_t stream) {
  launch(pack_kernel, dim3(out), kThreads, 0, stream, weight, packed, in, int4_bytes(1, in));
}

void dequantise(Type type, Format format, const void* weight, const float* scale, void* w,
                int64_t out, int64_t in, cudaStream_t stream) {
  if (type == Type::kBF16)
    unpack_weight<BF16>(format, weight, scale, w, out, in, stream);
  else
    unpack_weight<F16>(format, weight, scale, w, out, in, stream);
}

void quantise_rows(Type type, const void* x, void* rounded, float* scale, bool as_bytes,
                   int64_t rows, int64_t width, cudaStream_t stream) {
  if (!rows) return;
  const bool is_bf16 = type == Type::kBF16;
  if (as_bytes)
    (is_bf16 ? round_rows<BF16, true> : round_rows<F16, true>)(x, rounded, scale, rows, width,
                                                               stream);
  else
    (is_bf16 ? round_rows<BF16, false> : round_rows<F16, false>)(x, rounded, scale, rows, width,
                                                                 stream);
}

}  // namespace qinfer::cuda
