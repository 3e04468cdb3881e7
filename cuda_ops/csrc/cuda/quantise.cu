// Packing int4 weights, and unpacking weights for products of many rows.
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
    from_int8<T>(bytes.x, words[0], words[1]);
    from_int8<T>(bytes.y, words[2], words[3]);
    factor = scale ? scale[channel] : 1.0f;
  }
  float numbers[8];
  unpack8<T>({words[0], words[1], words[2], words[3]}, numbers);
#pragma unroll
  for (int j = 0; j < 8; ++j) numbers[j] *= factor;
  *reinterpret_cast<uint4*>(w + channel * in + i) = pack8<T>(numbers);
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
  else
    launch(dequantise_kernel<T, Format::kInt8>, grid, kThreads, 0, stream, from, scale, to, in, in);
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

}  // namespace qinfer::cuda
