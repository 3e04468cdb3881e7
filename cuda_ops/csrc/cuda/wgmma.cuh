// Products of a warpgroup: 64 rows of A times N columns of B, added to sums in registers. A
// thread's sums: row 16 warp + lane / 4 (+ 8), columns 8 n + 2 (lane % 4) (+ 1) at [4 n + 2 half +
// i].
#pragma once
#include "hopper.cuh"

#ifdef QINFER_HOPPER
namespace qinfer::cuda {

// A product's sums as operands of its instruction, and their places in its text.
#define QINFER_8(s, i)                                                                        \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), \
      "+f"(s[i + 6]), "+f"(s[i + 7])
#define QINFER_32(s, i) QINFER_8(s, i), QINFER_8(s, i + 8), QINFER_8(s, i + 16), QINFER_8(s, i + 24)
#define QINFER_SUMS_16(s) QINFER_8(s, 0)
#define QINFER_SUMS_64(s) QINFER_32(s, 0)
#define QINFER_SUMS_128(s) QINFER_32(s, 0), QINFER_32(s, 32)
#define QINFER_SUMS_256(s) QINFER_SUMS_128(s), QINFER_32(s, 64), QINFER_32(s, 96)
#define QINFER_PLACES_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define QINFER_PLACES_64                     \
  QINFER_PLACES_16                           \
  ", %8, %9, %10, %11, %12, %13, %14, %15"   \
  ", %16, %17, %18, %19, %20, %21, %22, %23" \
  ", %24, %25, %26, %27, %28, %29, %30, %31"
#define QINFER_PLACES_128                    \
  QINFER_PLACES_64                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55" \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define QINFER_PLACES_256                            \
  QINFER_PLACES_128                                  \
  ", %64, %65, %66, %67, %68, %69, %70, %71"         \
  ", %72, %73, %74, %75, %76, %77, %78, %79"         \
  ", %80, %81, %82, %83, %84, %85, %86, %87"         \
  ", %88, %89, %90, %91, %92, %93, %94, %95"         \
  ", %96, %97, %98, %99, %100, %101, %102, %103"     \
  ", %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119" \
  ", %120, %121, %122, %123, %124, %125, %126, %127"

// `kind`: "k16.f32.bf16.bf16" and the like, inputs and types; `more`: whether sums are added to or
// overwritten; `turned`: for types that can be, where A and B lie.
#define QINFER_PRODUCT(n, kind, a, b, more, turned)                                 \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " more                                          \
  ", 0;\n"                                                                          \
  "wgmma.mma_async.sync.aligned.m64n" #n kind " {" QINFER_PLACES_##n "}, " a ", " b \
                                                                     ", p, 1, 1" turned ";\n}"

// s (+)= A B^T, both in shared memory, each row's numbers along the inputs.
template <class T, int N>
__device__ __forceinline__ void multiply_shared(float (&s)[N / 2], uint64_t a, uint64_t b,
                                                bool add) {
  constexpr bool kB = std::is_same_v<T, BF16>;
  constexpr bool kH = std::is_same_v<T, F16>;
#define QINFER_ONE(n, is, kind, a_at, b_at, add_at, turned)        \
  if constexpr (N == n && is)                                      \
  asm volatile(QINFER_PRODUCT(n, kind, a_at, b_at, add_at, turned) \
               : QINFER_SUMS_##n(s)                                \
               : "l"(a), "l"(b), "r"(int(add)))
#define QINFER_EACH(n, a_at, b_at, add_at)                              \
  QINFER_ONE(n, kB, "k16.f32.bf16.bf16", a_at, b_at, add_at, ", 0, 0"); \
  QINFER_ONE(n, kH, "k16.f32.f16.f16", a_at, b_at, add_at, ", 0, 0");   \
  QINFER_ONE(n, (!kB && !kH), "k32.f32.e4m3.e4m3", a_at, b_at, add_at, "")
  QINFER_EACH(16, "%8", "%9", "%10");
  QINFER_EACH(64, "%32", "%33", "%34");
  QINFER_EACH(128, "%64", "%65", "%66");
  QINFER_EACH(256, "%128", "%129", "%130");
#undef QINFER_EACH
#undef QINFER_ONE
}

// s += A B, A in registers as mma.sync has it. B's numbers along the inputs, or across them.
template <class T, int N, bool Across>
__device__ __forceinline__ void multiply_by_registers(float (&s)[N / 2], const uint32_t (&a)[4],
                                                      uint64_t b) {
  constexpr bool kB = std::is_same_v<T, BF16>;
#define QINFER_ONE(n, is, kind, a_at, b_at, turned)             \
  if constexpr (N == n && is)                                   \
  asm volatile(QINFER_PRODUCT(n, kind, a_at, b_at, "1", turned) \
               : QINFER_SUMS_##n(s)                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define QINFER_EACH(n, a_at, b_at)                                        \
  QINFER_ONE(n, (kB && !Across), "k16.f32.bf16.bf16", a_at, b_at, ", 0"); \
  QINFER_ONE(n, (!kB && !Across), "k16.f32.f16.f16", a_at, b_at, ", 0");  \
  QINFER_ONE(n, (kB && Across), "k16.f32.bf16.bf16", a_at, b_at, ", 1");  \
  QINFER_ONE(n, (!kB && Across), "k16.f32.f16.f16", a_at, b_at, ", 1")
  QINFER_EACH(16, "{%8, %9, %10, %11}", "%12");
  QINFER_EACH(64, "{%32, %33, %34, %35}", "%36");
  QINFER_EACH(128, "{%64, %65, %66, %67}", "%68");
  QINFER_EACH(256, "{%128, %129, %130, %131}", "%132");
#undef QINFER_EACH
#undef QINFER_ONE
}

// s += A B^T
template <class T, int N>
__device__ __forceinline__ void multiply_registers(float (&s)[N / 2], const uint32_t (&a)[4],
                                                   uint64_t b) {
  multiply_by_registers<T, N, false>(s, a, b);
}
// s += A B
template <class T, int N>
__device__ __forceinline__ void multiply_turned(float (&s)[N / 2], const uint32_t (&a)[4],
                                                uint64_t b) {
  multiply_by_registers<T, N, true>(s, a, b);
}

}  // namespace qinfer::cuda
#endif
