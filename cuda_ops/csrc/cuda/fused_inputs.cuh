// The inputs of a product of very few rows, made in shared memory: the residual sum, the norm's
// weights, and the rounding that the weight's format asks for.
#pragma once
#include "fused_weights.cuh"

namespace qinfer::cuda {

// A row has W / (rows, as a power of two) warps. What a whole row has to be multiplied with, the
// norm's factor above all, is left to the results.
template <Format F, class P>
struct Inputs {
  using Weights = Stream<F, P>;
  using M = typename Weights::M;
  static constexpr bool kRounded = F == Format::kInt8 || F == Format::kE4M3;
  static constexpr int kBatch = 6;  // loads of sixteen bytes on their way

  const Weights& f;
  const Arguments& p;
  int warps = P::kW, row, first, stride, end;
  BF16* held;  // before it is rounded

  __device__ explicit Inputs(const Weights& weights) : f(weights), p(weights.p) {
    for (int rows = 1; rows < p.rows; rows *= 2) warps /= 2;
    row = f.warp / warps;
    first = (f.warp % warps * 32 + f.lane) * 8, stride = warps * 32 * 8;
    end = row < p.rows ? f.steps * Weights::kStep : 0;
    held = reinterpret_cast<BF16*>(f.inputs) + min(row, p.rows - 1) * f.pitch;
  }

  // Weights of the norm wait where the inputs will be.
  __device__ __forceinline__ void before() const {
    if (p.norm)
      for (int i = first; i < min(end, p.in); i += stride) copy16(held + i, p.norm + i, true);
    commit();
  }

  __device__ __forceinline__ void after() const {
    if (!p.norm && !kRounded && !P::kSplit) {
      for (int i = first; i < end; i += stride)
        copy16(held + i, p.x + int64_t(row) * p.in + i, i < p.in);
      commit();
      wait_for_copies<0>();
    } else {
      wait_for_copies<P::kS>();
      p.residual || p.norm ? make() : fetch();
      if (kRounded) {
        __syncthreads();
        round();
      }
      if (P::kSplit) split();
    }
    __syncthreads();
  }

  // What the results of a row are too large by, and then have to be multiplied with. For whole
  // warps.
  __device__ __forceinline__ float2 correction(int of) const {
    if (!p.norm && !kRounded) return {0, 1};
    const float norm = p.norm ? rsqrtf(warp_sum(by_warps(of, 0)) / p.in + p.eps) : 1.0f;
    if (!kRounded) return {0, norm};
    return {F == Format::kInt8 ? warp_sum(by_warps(of, 2)) * kInt8Shift : 0.0f, norm * unit(of)};
  }

 private:
  // Code that a warp runs through once is worth its length: a step's kernels together should fit
  // the cache for instructions. So loops stay loops.

  // The inputs as they are. All of a block's are asked for at once, as there are no others to hide
  // behind.
  __device__ __forceinline__ void fetch() const {
    __nv_bfloat162 most = __float2bfloat162_rn(0);
#pragma unroll 1
    for (int at = first; at < end; at += stride * kBatch) {
      uint4 x[kBatch] = {};
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (const int i = at + b * stride; i < p.in) x[b] = load16(p.x + int64_t(row) * p.in + i);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (at + b * stride < end) *reinterpret_cast<uint4*>(held + at + b * stride) = x[b];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          most = __hmax2(most, __habs2(reinterpret_cast<const __nv_bfloat162*>(&x[b])[j]));
      }
    }
    tell(0, fmaxf(number(most.x), number(most.y)));
  }

  __device__ __forceinline__ void make() const {
    float squares = 0, most = 0;
#pragma unroll 1
    for (int i = first; i < end; i += stride) keep(i, squares, most);
    tell(squares, most);
  }

  __device__ __forceinline__ void tell(float squares, float most) const {
    squares = warp_sum(squares), most = warp_max_magnitude(most);
    if (f.lane == 0) f.found[f.warp * 4] = squares, f.found[f.warp * 4 + 1] = most;
  }

  // A lane for each warp of a row: what it found.
  __device__ __forceinline__ float by_warps(int of, int what) const {
    return f.lane < warps ? f.found[(of * warps + f.lane) * 4 + what] : 0.0f;
  }

  __device__ __forceinline__ void keep(int i, float& squares, float& most) const {
    uint4 x = {}, more = {};
    if (i < p.in) {
      x = load16(p.x + int64_t(row) * p.in + i);
      if (p.residual) more = load16(p.residual + int64_t(row) * p.in + i);
    }
    float v[8];
    unpack8<BF16>(x, v);
    if (p.residual && i < p.in) {
      float other[8];
      unpack8<BF16>(more, other);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] += other[j];
      const uint4 sum = pack8<BF16>(v);
      if (blockIdx.x == 0) *reinterpret_cast<uint4*>(p.total + int64_t(row) * p.in + i) = sum;
      unpack8<BF16>(sum, v);  // the norm is of the sum as it is kept
    }
    if (p.norm && i < p.in) {
      float w[8];
      unpack8<BF16>(*reinterpret_cast<const uint4*>(held + i), w);
#pragma unroll
      for (int j = 0; j < 8; ++j) squares += v[j] * v[j], v[j] *= w[j];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(v[j]));
    *reinterpret_cast<uint4*>(held + i) = pack8<BF16>(v);
  }

  // A row is divided by this. e4m3: its largest magnitude becomes 448, as the operator's contract
  // has it; otherwise a power of two brings it below 2^13, so that nothing of a bfloat16 row is
  // lost in float16 but numbers 2^-27 of its largest.
  __device__ __forceinline__ float unit(int of) const {
    const float most = warp_max_magnitude(by_warps(of, 1));
    if constexpr (F == Format::kE4M3) return fmaxf(most / 448.0f, 1e-30f);
    const int exponent = int(__float_as_uint(most) >> 23);
    return __uint_as_float(uint32_t(min(max(exponent - 12, 1), 253)) << 23);
  }

  __device__ __forceinline__ void round() const {
    const float by = unit(min(row, p.rows - 1)), inverse = 1.0f / by;
    float all = 0;
#pragma unroll 1
    for (int i = first; i < end; i += stride) {
      float v[8];
      __half2 rounded[4];
      auto* at = reinterpret_cast<uint4*>(held + i);
      unpack8<BF16>(*at, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 near = {v[2 * j] * inverse, v[2 * j + 1] * inverse};
        if constexpr (F == Format::kE4M3) {
          rounded[j] = e4m3(quotient(v[2 * j], near.x, by, inverse),
                            quotient(v[2 * j + 1], near.y, by, inverse));
        } else {
          rounded[j] = __float22half2_rn(near);
          const float2 kept = __half22float2(rounded[j]);
          all += kept.x + kept.y;
        }
      }
      *at = *reinterpret_cast<const uint4*>(rounded);
    }
    if constexpr (F != Format::kInt8) return;
    all = warp_sum(all);
    if (f.lane == 0) f.found[f.warp * 4 + 2] = all;
  }

  // Each thread its own numbers, as a group's lie in one warp.
  __device__ __forceinline__ void split() const {
#pragma unroll 1
    for (int i = first; i < end; i += stride)
      split_group(reinterpret_cast<uint4*>(held + i), f.units[i / 64]);
  }

  // x / by, as the reference divides, from near = x * inverse.
  static __device__ __forceinline__ float quotient(float x, float near, float by, float inverse) {
    return fmaf(fmaf(-near, by, x), inverse, near);
  }
  static __device__ __forceinline__ __half2 e4m3(float x, float y) {
    return __nv_cvt_fp8x2_to_halfraw2(__nv_cvt_float2_to_fp8x2({x, y}, __NV_SATFINITE, __NV_E4M3),
                                      __NV_E4M3);
  }
};

}  // namespace qinfer::cuda
