// Which plan a product of very few rows has, and where its blocks are put.
//
// The plans were found by trying all four products of a layer together, in a chain of all layers of
// Qwen2 0.5B, 1.5B and 7B on an H100 (benchmarks/gpu/NOTES.md). How far a block looks ahead also
// decides which of the next kernels' blocks fit beside it: those of attention should, which follow
// the QKV product's; those that read weights should not yet, as attention's few loads wait behind
// theirs.
#include "fused_kernel.cuh"

namespace qinfer::cuda {
namespace {

constexpr size_t kAside = 64 << 10;
constexpr Placing kTwo{2}, kTwoEven{2, true}, kTwoLate{2, false, 0, true};
constexpr Placing kOne{1}, kOneEven{1, true}, kAlone{1, false, kAside};

// Where a block of that plan has too little shared memory, a smaller one.
template <Format F, int W, int R, int S, bool Gated, bool Split = false>
void run_plan(const FusedProduct& p, const Placing& placing, cudaStream_t stream) {
  using P = Plan<W, R, S, Gated, Split>;
  const size_t needed =
      Stream<F, P>::shared_bytes(static_cast<int>(p.rows), static_cast<int>(p.in));
  if (needed <= size_t(most_shared())) return run<F, P>(p, placing, stream);
  run<F, Plan<16, 2, 3, Gated>>(p, kTwo, stream);
}

// What a product is in a layer: QKV, attention's output, gate and up, down.
enum class Role { kFirst, kOutput, kGated, kDown };
Role role_of(const FusedProduct& p) {
  if (p.gated) return Role::kGated;
  return p.norm ? Role::kFirst : p.in > p.out ? Role::kDown : Role::kOutput;
}
// The size of what goes through all layers: 896 in 0.5B, 1536 in 1.5B, 3584 in 7B.
constexpr int64_t kSmall = 1024, kMiddle = 2048;  // below these
int64_t hidden_of(const FusedProduct& p) { return p.gated || p.norm ? p.in : p.out; }

void run_bfloat16(const FusedProduct& p, cudaStream_t stream) {
  constexpr Format F = Format::kPlain;
  const int64_t hidden = hidden_of(p);
  switch (role_of(p)) {
    case Role::kFirst:
      if (hidden < kSmall) return run_plan<F, 16, 2, 4, false>(p, kTwo, stream);
      return run_plan<F, 16, 2, 6, false>(p, kTwo, stream);
    case Role::kOutput:
      if (hidden < kSmall) return run_plan<F, 16, 2, 4, false>(p, kTwo, stream);
      return run_plan<F, 16, 2, 6, false>(p, hidden < kMiddle ? kTwo : kAlone, stream);
    case Role::kGated:
      if (hidden < kSmall) return run_plan<F, 14, 4, 2, true>(p, {2, false, 16 << 10}, stream);
      if (hidden < kMiddle) return run_plan<F, 16, 2, 6, true>(p, kTwoEven, stream);
      return run_plan<F, 16, 2, 8, true>(p, kOne, stream);
    case Role::kDown:
      if (hidden < kSmall) return run_plan<F, 16, 2, 8, false>(p, kTwoLate, stream);
      if (hidden < kMiddle) return run_plan<F, 16, 2, 10, false>(p, kTwoLate, stream);
      return run_plan<F, 16, 2, 8, false>(p, kOneEven, stream);
  }
}

// 3584 inputs are 56 steps, which 14 warps share evenly.
template <Format F>
void run_eight_bits(const FusedProduct& p, cudaStream_t stream) {
  const bool is_large = hidden_of(p) >= kMiddle;
  switch (role_of(p)) {
    case Role::kFirst:
      if (!is_large) return run_plan<F, 14, 2, 6, false>(p, kTwo, stream);
      return run_plan<F, 14, 2, 3, false>(p, kTwo, stream);
    case Role::kOutput:
      if (!is_large) return run_plan<F, 14, 2, 6, false>(p, kTwo, stream);
      return run_plan<F, 14, 2, 4, false>(p, kAlone, stream);
    case Role::kGated:
      if (!is_large) return run_plan<F, 14, 2, 5, true>(p, kTwoEven, stream);
      return run_plan<F, 16, 2, 4, true>(p, {2, false, kAside, true}, stream);
    case Role::kDown:
      if (!is_large) return run_plan<F, 14, 2, 6, false>(p, kAlone, stream);
      return run_plan<F, 16, 2, 6, false>(p, kOneEven, stream);
  }
}

// 3584 inputs are 28 steps. To split down's 18944 costs more than it saves.
void run_int4(const FusedProduct& p, cudaStream_t stream) {
  constexpr Format F = Format::kInt4;
  switch (role_of(p)) {
    case Role::kFirst:
      return run_plan<F, 14, 2, 3, false, true>(p, kTwoEven, stream);
    case Role::kOutput:
      return run_plan<F, 14, 2, 3, false, true>(p, {1, false, 96 << 10}, stream);
    case Role::kGated:
      return run_plan<F, 14, 2, 4, true, true>(p, kTwoEven, stream);
    case Role::kDown:
      return run_plan<F, 14, 2, 4, false>(p, kTwo, stream);
  }
}

}  // namespace

constexpr int64_t kMostChannels = 1 << 16;  // of a vocabulary, linear.cu's blocks end less often

// Beyond, inputs take too much shared memory for blocks to be on a multiprocessor together.
bool fused_knows(Type type, Format format, int64_t rows, int64_t in, int64_t out) {
  constexpr int64_t kRest = 70 << 10;  // bytes for the weights on their way and the sums
  const int64_t inputs = rows * (in + 128) * 2, most = format == Format::kInt4 ? 1 : kFewRows;
  return out <= kMostChannels && type == Type::kBF16 && rows > 0 && rows <= most &&
         inputs <= (48 << 10) && inputs + kRest <= most_shared();
}

void fused_product(Format format, const FusedProduct& p, cudaStream_t stream) {
  switch (format) {
    case Format::kPlain:
      return run_bfloat16(p, stream);
    case Format::kInt8:
      return run_eight_bits<Format::kInt8>(p, stream);
    case Format::kE4M3:
      return run_eight_bits<Format::kE4M3>(p, stream);
    default:
      return run_int4(p, stream);
  }
}

}  // namespace qinfer::cuda
