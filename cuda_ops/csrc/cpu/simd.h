// As many floats at a time as one register holds, in the compiler's portable vector types: what is
// wider than a register GCC keeps in memory, which costs ten times the time and more.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace qinfer {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float F32 __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint16_t U16 __attribute__((vector_size(2 * kLanes), aligned(2)));
typedef int16_t I16 __attribute__((vector_size(2 * kLanes), aligned(2)));
typedef uint8_t U8 __attribute__((vector_size(kLanes), aligned(1)));
typedef int8_t I8 __attribute__((vector_size(kLanes), aligned(1)));

// Ask for a line of the cache. A function that did nothing else would have no effects in GCC's
// eyes, and its calls were dropped, but for the empty instruction.
inline void ask_for(const void* p) {
  __builtin_prefetch(p);
  asm volatile("");
}

template <typename V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <typename V>
inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

// `count` numbers at the most, zeros behind them; whole vectors the short way.
inline F32 load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load<F32>(from);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load<F32>(lanes);
}

// Some lanes of a vector, out of the way of code that stores whole ones.
template <typename T, typename V>
[[gnu::noinline]] void store_lanes(T* to, V v, int64_t count) {
  T lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

template <typename T, typename V>
inline void store_some(T* to, V v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  store_lanes(to, v, count);
}

// Less zero, not plus: x + 0 is another number for -0, so it would be added up indeed.
inline F32 splat(float x) { return x - F32{}; }

// sum + a * b, rounded once where the processor can. Spelled out because GCC chooses between one
// instruction and two by what is around, and then results depended on how many rows there are.
inline F32 add_product(F32 sum, F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return sum + a * b;
#endif
}

// The float whose upper half these bits are, and back: to the nearest, ties to even.
inline F32 from_bf16(U16 bits) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // for which GCC takes four instructions
  return (F32)((U32)_mm256_cvtepu16_epi32((__m128i)bits) << 16);
#else
  return (F32)(__builtin_convertvector(bits, U32) << 16);
#endif
}

inline U16 to_bf16(F32 x) {
  const U32 bits = (U32)x;
  return __builtin_convertvector((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, U16);
}

// Sums and maxima over the lanes, always in the same order.
inline float sum(F32 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline F32 max(F32 a, F32 b) { return a > b ? a : b; }

inline F32 min(F32 a, F32 b) { return a < b ? a : b; }

inline float max(F32 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

inline F32 abs(F32 v) { return (F32)((U32)v & 0x7FFFFFFFu); }

// The largest magnitude of `count` numbers.
inline float largest_magnitude(const float* x, int64_t count) {
  F32 best = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) best = max(best, abs(load<F32>(x + k)));
  float result = max(best);
  for (; k < count; ++k) result = x[k] > result ? x[k] : -x[k] > result ? -x[k] : result;
  return result;
}

// To the nearest integer, ties to even; exact for magnitudes below 2^22.
inline F32 nearest(F32 x) { return (x + 12582912.0f) - 12582912.0f; }

// Seven bits up, an e4m3 reads as a float16 that is 2^8 smaller; the mask clears the copy of the
// sign that the widening left in bit 14. The result is those smaller values.
inline F32 decode_e4m3(const void* bytes) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // for which GCC takes four instructions
  const I16 wide = (I16)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)bytes));
#else
  const I16 wide = __builtin_convertvector(load<I8>(bytes), I16);
#endif
  const I16 bits = (wide << 7) & (int16_t)0xBF80;
#if defined(__AVX512F__)
  return (F32)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__AVX2__) && defined(__F16C__)
  return (F32)_mm256_cvtph_ps((__m128i)bits);
#else  // the same value by way of a float with the exponent 112 too small
  const U32 all = __builtin_convertvector((U16)bits, U32);
  return (F32)(((all & 0x8000u) << 16) | ((all & 0x7FFFu) << 13)) * 0x1p112f;
#endif
}

constexpr float kE4M3Max = 448.0f;

// The nearest e4m3 values, ties to even, saturating at 448: as floats.
inline F32 round_e4m3(F32 x) {
  x = x > kE4M3Max ? splat(kE4M3Max) : x;
  x = x < -kE4M3Max ? splat(-kE4M3Max) : x;
  const U32 bits = (U32)x;
  const F32 normal = (F32)((bits + 0x7FFFFu + ((bits >> 20) & 1u)) & 0xFFF00000u);
  const F32 subnormal = nearest(x * 512.0f) / 512.0f;
  return abs(x) < 0.015625f ? subnormal : normal;
}

// Their bits.
inline U8 encode_e4m3(F32 x) {
  const U32 bits = (U32)round_e4m3(x), sign = bits >> 24 & 0x80u;
  const U32 normal = ((bits & 0x7FFFFFFFu) >> 20) - (120 << 3);
  const U32 subnormal = (U32) __builtin_convertvector(nearest(abs(x) * 512.0f), I32);
  return __builtin_convertvector(sign | (abs(x) < 0.015625f ? subnormal : normal), U8);
}

// e^x to two units in the last place for x <= 88; below -87 it gives e^-87 (about 1e-38).
// Cephes' reduction: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial of degree 6 in r.
inline F32 exp(F32 x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const F32 shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to integer
  const F32 n = shifted - 12582912.0f;
  F32 r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  F32 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const I32 bits = (I32)shifted << 23;  // the integer sits in the low bits of `shifted`
  return (F32)((I32)p + bits);
}

}  // namespace qinfer
