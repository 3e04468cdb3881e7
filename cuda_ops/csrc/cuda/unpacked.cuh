// Weights of 8 or 4 bits in shared memory -> operands of a warpgroup's product, in registers:
// thread g, t of a warp (lane / 4, lane % 4) takes numbers 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of
// each sixteen, of channels g and g + 8.
#pragma once
#include "weights.cuh"

namespace qinfer::cuda {

// Two bytes -128 to 127 as numbers.
template <class T>
__device__ __forceinline__ uint32_t pair_of_bytes(uint32_t bytes);
// The lower seven bits go into the mantissa of 128, which has room for so many; the sign decides
// whether 128 or 256 is taken away.
template <>
__device__ __forceinline__ uint32_t pair_of_bytes<BF16>(uint32_t bytes) {
  const uint32_t held = __byte_perm(bytes, 0x43434343u, 0x4140);
  const uint32_t number = held & 0xff7fff7fu, shift = held & 0xff80ff80u;
  const __nv_bfloat162 r = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&number),
                                   *reinterpret_cast<const __nv_bfloat162*>(&shift));
  return *reinterpret_cast<const uint32_t*>(&r);
}
template <>
__device__ __forceinline__ uint32_t pair_of_bytes<F16>(uint32_t bytes) {
  const uint32_t held = __byte_perm(bytes ^ 0x8080u, 0x64646464u, 0x4140);
  const __half2 r = __hsub2(*reinterpret_cast<const __half2*>(&held), __float2half2_rn(1152.0f));
  return *reinterpret_cast<const uint32_t*>(&r);
}

template <class T>
__device__ __forceinline__ uint32_t scaled(uint32_t a, uint32_t by);
template <>
__device__ __forceinline__ uint32_t scaled<BF16>(uint32_t a, uint32_t by) {
  const __nv_bfloat162 r =
      __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&by));
  return *reinterpret_cast<const uint32_t*>(&r);
}
template <>
__device__ __forceinline__ uint32_t scaled<F16>(uint32_t a, uint32_t by) {
  const __half2 r = __hmul2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&by));
  return *reinterpret_cast<const uint32_t*>(&r);
}

constexpr int kInputs = 128;

// The registers of a product that is under way must stay what they are.
__device__ __forceinline__ void keep_until_here(uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) asm volatile("" ::"r"(a[i]) : "memory");
}

// A thread's part of kInputs inputs ("stage") of 16 channels, sixteen at a time ("step").
template <class T, Format F>
struct Unpacked;

template <class T>
struct Unpacked<T, Format::kInt8> {
  static constexpr int kPitch = 128;  // bytes of a channel in a stage
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

  __device__ Unpacked(const float*, int, int, int) {}
  __device__ __forceinline__ void fetch(int) {}
  __device__ __forceinline__ void take(int) {}
  static __device__ __forceinline__ int sixteen(int step) { return step; }  // which of the stage's

  // `from`: channel 0 of the warp's sixteen
  __device__ __forceinline__ void operands(const unsigned char* from, int step, uint32_t (&a)[4]) {
    const unsigned char* at = from + g * kPitch + ((step ^ g) * 16) + 2 * t;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[i] =
          pair_of_bytes<T>(*reinterpret_cast<const uint16_t*>(at + i % 2 * 8 * kPitch + i / 2 * 8));
  }
};

template <class T>
struct Unpacked<T, Format::kInt4> {
  static constexpr int kPitch = 64;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const float* scales[2];  // of channels g and g + 8
  const int groups;
  float next[2][2];
  uint32_t scale[2][2];
  uint4 held[2];

  __device__ Unpacked(const float* all, int channel, int out, int in) : groups(in / 64) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      scales[half] = all + int64_t(min(channel + g + 8 * half, out - 1)) * groups;
  }
  __device__ __forceinline__ void fetch(int stage) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int part = 0; part < 2; ++part)
        next[half][part] =
            2 * stage + part < groups ? load_scale(scales[half] + 2 * stage + part) : 0;
  }
  // Takes what was fetched before, and fetches the next stage's.
  __device__ __forceinline__ void take(int stage) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int part = 0; part < 2; ++part)
        scale[half][part] = pack<T>(next[half][part], next[half][part]);
    fetch(stage + 1);
  }
  static __device__ __forceinline__ int sixteen(int step) { return step % 2 * 4 + step / 2; }

  __device__ __forceinline__ void operands(const unsigned char* from, int step, uint32_t (&a)[4]) {
    if (step % 2 == 0)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        held[half] = *reinterpret_cast<const uint4*>(from + (g + 8 * half) * kPitch +
                                                     (((step / 2) ^ (g / 2)) * 16));
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[i] = scaled<T>(from_nibbles<T>(word(held[i % 2], step % 2 * 2 + i / 2) >> (4 * t)),
                       scale[i % 2][step % 2]);
  }
};

}  // namespace qinfer::cuda
