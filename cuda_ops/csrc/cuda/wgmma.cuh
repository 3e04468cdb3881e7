// Products of a warpgroup: 64 rows of A times N columns of B, added to sums in registers. A
// thread's sums: row 16 warp + lane / 4 (+ 8), columns 8 n + 2 (lane % 4) (+ 1) at [4 n + 2 half +
// i].
#pragma once
#include "hopper.cuh"

#ifdef QINFER_HOPPER
namespace qinfer::cuda {

#define QINFER_8(s, i)                                                                        \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), \
      "+f"(s[i + 6]), "+f"(s[i + 7])
#define QINFER_32(s, i) QINFER_8(s, i), QINFER_8(s, i + 8), QINFER_8(s, i + 16), QINFER_8(s, i + 24)

// Type: "bf16.bf16" with k16, "e4m3.e4m3" with k32; A and B in shared memory, each row's numbers
// along the inputs.
#define QINFER_SHARED_64(kind, rest)                                                      \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                        \
      "wgmma.mma_async.sync.aligned.m64n64" kind                                          \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
      "%32, %33, p, 1, 1" rest ";\n}"                                                     \
      : QINFER_32(s, 0)                                                                   \
      : "l"(a), "l"(b), "r"(int(add)))
// Type: "bf16.bf16" with k16, "e4m3.e4m3" with k32; A and B in shared memory, each row's numbers
// along the inputs.
#define QINFER_SHARED_128(kind, rest)                                                     \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                        \
      "wgmma.mma_async.sync.aligned.m64n128" kind                                         \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
      "%64, %65, p, 1, 1" rest ";\n}"                                                     \
      : QINFER_32(s, 0), QINFER_32(s, 32)                                                 \
      : "l"(a), "l"(b), "r"(int(add)))
// Type: "bf16.bf16" with k16, "e4m3.e4m3" with k32; A and B in shared memory, each row's numbers
// along the inputs.
#define QINFER_SHARED_256(kind, rest)                                                              \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                                \
      "wgmma.mma_async.sync.aligned.m64n256" kind                                                  \
      " "                                                                                          \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "           \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
      "%111, "                                                                                     \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
      "%127}, "                                                                                    \
      "%128, %129, p, 1, 1" rest ";\n}"                                                            \
      : QINFER_32(s, 0), QINFER_32(s, 32), QINFER_32(s, 64), QINFER_32(s, 96)                      \
      : "l"(a), "l"(b), "r"(int(add)))
#define QINFER_REGISTERS_64(kind, rest)                                                   \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                          \
      "wgmma.mma_async.sync.aligned.m64n64" kind                                          \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
      "{%32, %33, %34, %35}, %36, p, 1, 1" rest ";\n}"                                    \
      : QINFER_32(s, 0)                                                                   \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define QINFER_REGISTERS_128(kind, rest)                                                  \
  asm volatile(                                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                          \
      "wgmma.mma_async.sync.aligned.m64n128" kind                                         \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
      "{%64, %65, %66, %67}, %68, p, 1, 1" rest ";\n}"                                    \
      : QINFER_32(s, 0), QINFER_32(s, 32)                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define QINFER_REGISTERS_256(kind, rest)                                                           \
  asm volatile(                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                                   \
      "wgmma.mma_async.sync.aligned.m64n256" kind                                                  \
      " "                                                                                          \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "           \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
      "%111, "                                                                                     \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
      "%127}, "                                                                                    \
      "{%128, %129, %130, %131}, %132, p, 1, 1" rest ";\n}"                                        \
      : QINFER_32(s, 0), QINFER_32(s, 32), QINFER_32(s, 64), QINFER_32(s, 96)                      \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// s (+)= A B^T
template <class T, int N>
__device__ __forceinline__ void multiply_shared(float (&s)[N / 2], uint64_t a, uint64_t b,
                                                bool add) {
  constexpr bool kB = std::is_same_v<T, BF16>;
  constexpr bool kH = std::is_same_v<T, F16>;
  if constexpr (N == 64 && kB) QINFER_SHARED_64("k16.f32.bf16.bf16", ", 0, 0");
  if constexpr (N == 64 && kH) QINFER_SHARED_64("k16.f32.f16.f16", ", 0, 0");
  if constexpr (N == 64 && !kB && !kH) QINFER_SHARED_64("k32.f32.e4m3.e4m3", "");
  if constexpr (N == 128 && kB) QINFER_SHARED_128("k16.f32.bf16.bf16", ", 0, 0");
  if constexpr (N == 128 && kH) QINFER_SHARED_128("k16.f32.f16.f16", ", 0, 0");
  if constexpr (N == 128 && !kB && !kH) QINFER_SHARED_128("k32.f32.e4m3.e4m3", "");
  if constexpr (N == 256 && kB) QINFER_SHARED_256("k16.f32.bf16.bf16", ", 0, 0");
  if constexpr (N == 256 && kH) QINFER_SHARED_256("k16.f32.f16.f16", ", 0, 0");
  if constexpr (N == 256 && !kB && !kH) QINFER_SHARED_256("k32.f32.e4m3.e4m3", "");
}

// s += A B, A in registers as mma.sync has it, B's numbers across the inputs.
template <class T, int N>
__device__ __forceinline__ void multiply_turned(float (&s)[N / 2], const uint32_t (&a)[4],
                                                uint64_t b) {
  constexpr bool kB = std::is_same_v<T, BF16>;
  if constexpr (N == 64 && kB) QINFER_REGISTERS_64("k16.f32.bf16.bf16", ", 1");
  if constexpr (N == 64 && !kB) QINFER_REGISTERS_64("k16.f32.f16.f16", ", 1");
  if constexpr (N == 128 && kB) QINFER_REGISTERS_128("k16.f32.bf16.bf16", ", 1");
  if constexpr (N == 128 && !kB) QINFER_REGISTERS_128("k16.f32.f16.f16", ", 1");
}

// s += A B^T, A in registers, B's numbers along the inputs.
template <class T, int N>
__device__ __forceinline__ void multiply_registers(float (&s)[N / 2], const uint32_t (&a)[4],
                                                   uint64_t b) {
  constexpr bool kB = std::is_same_v<T, BF16>;
  if constexpr (N == 64 && kB) QINFER_REGISTERS_64("k16.f32.bf16.bf16", ", 0");
  if constexpr (N == 64 && !kB) QINFER_REGISTERS_64("k16.f32.f16.f16", ", 0");
  if constexpr (N == 128 && kB) QINFER_REGISTERS_128("k16.f32.bf16.bf16", ", 0");
  if constexpr (N == 128 && !kB) QINFER_REGISTERS_128("k16.f32.f16.f16", ", 0");
  if constexpr (N == 256 && kB) QINFER_REGISTERS_256("k16.f32.bf16.bf16", ", 0");
  if constexpr (N == 256 && !kB) QINFER_REGISTERS_256("k16.f32.f16.f16", ", 0");
}

}  // namespace qinfer::cuda
#endif
