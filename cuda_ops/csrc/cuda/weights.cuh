// How sixteen bytes of a weight become operands of a matrix instruction.
//
// A matrix instruction (m16n8k16) multiplies 16 weights' channels by 16 inputs. Which inputs those
// are is free as long as weights and activations agree, so each of the four threads that share a
// channel loads sixteen bytes that lie together: step i of them is its numbers 4 i to 4 i + 3.
#pragma once
#include <type_traits>

#include "common.cuh"

namespace qinfer::cuda {

template <Format F>
struct Held;
template <>
struct Held<Format::kPlain> {
  static constexpr int kNumbers = 8;  // in sixteen bytes
};
template <>
struct Held<Format::kInt8> {
  static constexpr int kNumbers = 16;
};
template <>
struct Held<Format::kE4M3> {
  static constexpr int kNumbers = 16;
};
template <>
struct Held<Format::kInt4> {
  static constexpr int kNumbers = 32;
};

// Sixteen bytes that are read once, with the whole line of 128 bytes: by the 64 that four threads
// ask for together the memory reads more slowly.
__device__ __forceinline__ uint4 load16_once(const void* at) {
  uint4 v;
  asm volatile("ld.global.cs.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

// A scale of a group, with the whole line of 128 bytes for the same reason: the next ones of its
// channel are other warps'.
__device__ __forceinline__ float load_scale(const float* at) {
  float v;
  asm("ld.global.nc.L2::128B.f32 %0, [%1];" : "=f"(v) : "l"(at));
  return v;
}

__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <class T>
__device__ __forceinline__ uint32_t times(uint32_t a, float factor);
template <>
__device__ __forceinline__ uint32_t times<BF16>(uint32_t a, float factor) {
  const __nv_bfloat162 r =
      __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), __float2bfloat162_rn(factor));
  return *reinterpret_cast<const uint32_t*>(&r);
}
template <>
__device__ __forceinline__ uint32_t times<F16>(uint32_t a, float factor) {
  const __half2 r = __hmul2(*reinterpret_cast<__half2*>(&a), __float2half2_rn(factor));
  return *reinterpret_cast<const uint32_t*>(&r);
}

// Four bytes -128 to 127: placed, plus 128, in the mantissa of 2^23.
template <class T>
__device__ __forceinline__ void from_int8(uint32_t bytes, uint32_t& low, uint32_t& high) {
  const uint32_t shifted = bytes ^ 0x80808080u;
  float f[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    f[i] = __uint_as_float(__byte_perm(shifted, 0x4b000000u, 0x7650 + i)) - 8388736.0f;
  low = pack<T>(f[0], f[1]), high = pack<T>(f[2], f[3]);
}

// float16 holds 1024 to 1279 exactly: the byte plus 128 goes into the mantissa of 1024.
template <>
__device__ __forceinline__ void from_int8<F16>(uint32_t bytes, uint32_t& low, uint32_t& high) {
  const uint32_t shifted = bytes ^ 0x80808080u;
  const auto less = [](uint32_t held) {
    const __half2 r = __hsub2(*reinterpret_cast<const __half2*>(&held), __float2half2_rn(1152.0f));
    return *reinterpret_cast<const uint32_t*>(&r);
  };
  low = less(__byte_perm(shifted, 0x64646464u, 0x4140));
  high = less(__byte_perm(shifted, 0x64646464u, 0x4342));
}

// Four e4m3 numbers: sign, exponent and fraction moved to their places, the exponent's bias made
// good by a multiplication, which is exact (subnormals too).
template <class T>
__device__ __forceinline__ void from_e4m3(uint32_t bytes, uint32_t& low, uint32_t& high) {
#if __CUDA_ARCH__ >= 890
  if constexpr (std::is_same_v<T, F16>) {
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, "
        "b;}"
        : "=r"(low), "=r"(high)
        : "r"(bytes));
    return;
  }
#endif
  const uint32_t a = __byte_perm(bytes, 0, 0x1404), b = __byte_perm(bytes, 0, 0x3424);
  if constexpr (sizeof(T) == 2 && std::is_same_v<T, BF16>) {
    // a byte now is the upper one of its half: seven bits go down to bits 10 to 4
    const auto place = [](uint32_t x) { return (x & 0x80008000u) | ((x & 0x7f007f00u) >> 4); };
    low = times<BF16>(place(a), 0x1p120f), high = times<BF16>(place(b), 0x1p120f);
  } else {
    const auto place = [](uint32_t x) { return (x & 0x80008000u) | ((x & 0x7f007f00u) >> 1); };
    low = times<F16>(place(a), 256.0f), high = times<F16>(place(b), 256.0f);
  }
}

// (bits & 0x000f000f) | Into in one instruction, which the compiler makes two of.
template <uint32_t Into>
__device__ __forceinline__ uint32_t nibbles_in(uint32_t bits) {
  uint32_t r;
  asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(r) : "r"(bits), "n"(Into));
  return r;
}

// Two nibbles 0 to 15 (weights plus 8) at bits 0-3 and 16-19 of `bits`, in the mantissa of 128
// (bfloat16) or 1024 (float16).
template <class T>
__device__ __forceinline__ uint32_t from_nibbles(uint32_t bits);
template <>
__device__ __forceinline__ uint32_t from_nibbles<BF16>(uint32_t bits) {
  const uint32_t held = nibbles_in<0x43004300u>(bits);
  const __nv_bfloat162 r =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&held), __float2bfloat162_rn(136.0f));
  return *reinterpret_cast<const uint32_t*>(&r);
}
template <>
__device__ __forceinline__ uint32_t from_nibbles<F16>(uint32_t bits) {
  const uint32_t held = nibbles_in<0x64006400u>(bits);
  const __half2 r = __hsub2(*reinterpret_cast<const __half2*>(&held), __float2half2_rn(1032.0f));
  return *reinterpret_cast<const uint32_t*>(&r);
}

// Numbers 4 i to 4 i + 3 of sixteen bytes.
template <class T, Format F>
__device__ __forceinline__ void operands(const uint4& v, int i, uint32_t& low, uint32_t& high) {
  if constexpr (F == Format::kPlain) {
    low = word(v, 2 * i), high = word(v, 2 * i + 1);
  } else if constexpr (F == Format::kInt8) {
    from_int8<T>(word(v, i), low, high);
  } else if constexpr (F == Format::kE4M3) {
    from_e4m3<T>(word(v, i), low, high);
  } else {
    const uint32_t bits = word(v, i / 2) >> (i % 2 * 8);
    low = from_nibbles<T>(bits), high = from_nibbles<T>(bits >> 4);
  }
}

template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  if constexpr (std::is_same_v<T, BF16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace qinfer::cuda
