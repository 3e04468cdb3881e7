// What a KV cache holds: numbers as they are, or a number for each that stands for it times the
// scale of its token and head.
#pragma once
#include <cuda_fp8.h>

#include "weights.cuh"

namespace qinfer::cuda {

template <class T, Format F>
struct Stored {
  using Item = T;
  static constexpr int kBytes = 2, kNumbers = 8;  // of one; in sixteen bytes
  static constexpr float kMost = 0;               // not scaled
  static __device__ __forceinline__ Item pack(float x) { return T(x); }
};
template <class T>
struct Stored<T, Format::kInt8> {
  using Item = int8_t;
  static constexpr int kBytes = 1, kNumbers = 16;
  static constexpr float kMost = 127;
  static __device__ __forceinline__ Item pack(float x) {
    return static_cast<Item>(__float2int_rn(fminf(fmaxf(x, -kMost), kMost)));
  }
};
template <class T>
struct Stored<T, Format::kE4M3> {
  using Item = __nv_fp8_e4m3;
  static constexpr int kBytes = 1, kNumbers = 16;
  static constexpr float kMost = 448;
  static __device__ __forceinline__ Item pack(float x) { return Item(x); }  // saturates
};

}  // namespace qinfer::cuda
