// Sums of int4 weights' products with one row, of a group of 64 inputs each.
//
// A matrix instruction multiplies eight rows of inputs, and one is all there is: so four groups are
// rows 0, 2, 4 and 6, each in turn, with zeros for the others, and their sums stay apart.
#pragma once
#include "weights.cuh"

namespace qinfer::cuda {

// What the sums of a group's products are multiplied with and, before that, too small by: weights
// are held plus 8.
struct GroupUnit {
  float unit;
  int offset;  // -8 times the sum of the group's inputs
};

// Inputs as numbers: lane t of four reads 16 that lie together.
struct NumberSums {
  float low[4] = {}, high[4] = {};  // of two groups: the even ones and the odd ones

  __device__ explicit NumberSums(const GroupUnit&) {}

  // Sixteen bytes of two channels, with two groups.
  __device__ __forceinline__ void add(const uint4& one, const uint4& other, const uint4* first,
                                      const uint4* second) {
    add<0>(one, other, first[0], low), add<2>(one, other, first[1], low);
    add<4>(one, other, second[0], high), add<6>(one, other, second[1], high);
  }

  // Channel 0 or 1 of this lane's, with the group of its place among the four.
  __device__ __forceinline__ float of(int channel) const {
    return low[channel * 2] + high[channel * 2];
  }

 private:
  template <int Step>
  __device__ __forceinline__ void add(const uint4& one, const uint4& other, const uint4& x,
                                      float (&to)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a[4];
      operands<BF16, Format::kInt4>(one, Step + i, a[0], a[2]);
      operands<BF16, Format::kInt4>(other, Step + i, a[1], a[3]);
      multiply<BF16>(to, a, word(x, 2 * i), word(x, 2 * i + 1));
    }
  }
};

// Inputs as whole numbers: those of a group share a unit, a power of two, and each has two digits,
// so that it is (256 upper + lower) unit, both -128 to 127. Of a bfloat16 nothing is lost down to
// 2^-7 of the group's largest number, below that what is under 2^-16 of it. Nibbles are then
// multiplied as bytes, of which one instruction makes four, and sums are exact. Lower digits are
// rows 1, 3, 5 and 7.
struct GroupDigits {
  uint4 of[2][4];  // [upper, lower][lane of four]: for the low and high nibbles of two words
};

struct DigitSums {
  int low[4], high[4] = {};  // high nibbles count sixteen times
  const float unit;

  __device__ explicit DigitSums(const GroupUnit& of)
      : low{0, of.offset, 0, of.offset}, unit(of.unit) {}

  __device__ __forceinline__ void add(const uint4& one, const uint4& other, const uint4* first,
                                      const uint4* second) {
    add(one.x, one.y, other.x, other.y, *first), add(one.z, one.w, other.z, other.w, *second);
  }

  __device__ __forceinline__ float of(int channel) const {
    const int i = channel * 2;
    return unit * float(low[i] * 256 + low[i + 1] + ((high[i] * 256 + high[i + 1]) >> 4));
  }

 private:
  __device__ __forceinline__ void add(uint32_t one, uint32_t one_next, uint32_t other,
                                      uint32_t other_next, const uint4& x) {
    constexpr uint32_t kLow = 0x0f0f0f0f, kHigh = 0xf0f0f0f0;
    multiply({one & kLow, other & kLow, one_next & kLow, other_next & kLow}, x.x, x.z, low);
    multiply({one & kHigh, other & kHigh, one_next & kHigh, other_next & kHigh}, x.y, x.w, high);
  }

  static __device__ __forceinline__ void multiply(const uint4& a, uint32_t b0, uint32_t b1,
                                                  int (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
};

// Bits of the largest magnitude of 64 bfloat16 numbers, eight of each of eight threads; those of
// NaN, if there is one.
__device__ __forceinline__ uint32_t largest_of(const uint4& eight, uint32_t threads) {
  const auto larger = [](uint32_t a, uint32_t b) {
    const __nv_bfloat162 r = __hmax2_nan(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                         *reinterpret_cast<const __nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&r);
  };
  constexpr uint32_t kMagnitude = 0x7fff7fff;
  uint32_t most = larger(larger(eight.x & kMagnitude, eight.y & kMagnitude),
                         larger(eight.z & kMagnitude, eight.w & kMagnitude));
  most = larger(most, most >> 16);
#pragma unroll
  for (int d = 1; d < 8; d *= 2) most = larger(most, __shfl_xor_sync(threads, most, d));
  return most & 0x7fff;
}

// Eight numbers' digits, as the bytes of a word hold nibbles 0, 4, 1, 5 (low) and 2, 6, 3, 7, and
// their sum.
__device__ __forceinline__ int digits_of(const uint4& eight, float inverse, uint2& upper,
                                         uint2& lower) {
  // a whole number added to it is in the last bits; 128 more, as the upper digit is rounded
  constexpr float kPlace = 12582912.0f + 128.0f;
  float v[8];
  unpack8<BF16>(eight, v);
  uint32_t bits[8];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    bits[i] = __float_as_uint(fmaf(v[i], inverse, kPlace));
    sum += int(bits[i] - __float_as_uint(kPlace));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t even = __byte_perm(bits[2 * i], bits[2 * i + 4], 0x5140);
    const uint32_t odd = __byte_perm(bits[2 * i + 1], bits[2 * i + 5], 0x5140);
    (i ? upper.y : upper.x) = __byte_perm(even, odd, 0x7632);
    (i ? lower.y : lower.x) = __byte_perm(even, odd, 0x5410) ^ 0x80808080u;
  }
  return sum;
}

// Replaces 64 numbers by their digits; `at` are the eight that this thread of eight has.
__device__ __forceinline__ void split_group(uint4* at, GroupUnit& unit) {
  const int thread = threadIdx.x % 8;
  const uint32_t threads = 0xffu << (threadIdx.x & 24);
  const uint4 eight = *at;
  // the largest becomes 2^14 to 32639, which has an upper digit of 127
  const int exponent = max(int(largest_of(eight, threads) + 1) >> 7, 15);
  uint2 upper, lower;
  int sum = digits_of(eight, __uint_as_float(uint32_t(268 - exponent) << 23), upper, lower);
#pragma unroll
  for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(threads, sum, d);
  __syncwarp(threads);  // all have read what is overwritten
  auto* to = reinterpret_cast<uint2*>(at - thread) + thread;
  to[0] = upper, to[8] = lower;
  if (thread) return;
  const uint32_t none = 0x7fffffff, bits = uint32_t(exponent - 14) << 23;
  unit = {__uint_as_float(exponent < 255 ? bits : none), -8 * sum};
}

}  // namespace qinfer::cuda
