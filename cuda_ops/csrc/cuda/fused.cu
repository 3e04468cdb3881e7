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

// False, and nothing done, where a block of that plan has not enough shared memory.
template <Format F, int W, int R, int S, bool Gated, bool Split = false>
bool ran(const FusedProduct& p, const Placing& placing, cudaStream_t stream) {
  using P = Plan<W, R, S, Gated, Split>;
  const size_t needed =
      Stream<F, P>::shared_bytes(static_cast<int>(p.rows), static_cast<int>(p.in));
  if (needed > size_t(most_shared())) return false;
  run<F, P>(p, placing, stream);
  return true;
}

// Of a layer, by the size of what goes through all of them: 896 in 0.5B, 1536 in 1.5B, 3584 in 7B.
enum class Step { kFirst, kOutput, kGated, kDown };  // QKV, attention's output, gate and up, down
Step step_of(const FusedProduct& p) {
  if (p.gated) return Step::kGated;
  return p.norm ? Step::kFirst : p.in > p.out ? Step::kDown : Step::kOutput;
}
constexpr int64_t kSmall = 1024, kMiddle = 2048;  // below these
int64_t hidden_of(const FusedProduct& p) { return p.gated || p.norm ? p.in : p.out; }

template <Format F>
bool bfloat16_ran(const FusedProduct& p, cudaStream_t stream) {
  const int64_t hidden = hidden_of(p);
  const bool is_small = hidden < kSmall, is_middle = !is_small && hidden < kMiddle;
  switch (step_of(p)) {
    case Step::kFirst:
      return is_small ? ran<F, 16, 2, 4, false>(p, kTwo, stream)
                      : ran<F, 16, 2, 6, false>(p, kTwo, stream);
    case Step::kOutput:
      if (is_small) return ran<F, 16, 2, 4, false>(p, kTwo, stream);
      if (is_middle) return ran<F, 16, 2, 6, false>(p, kTwo, stream);
      return ran<F, 16, 2, 6, false>(p, kAlone, stream);
    case Step::kGated:
      if (is_small) return ran<F, 14, 4, 2, true>(p, {2, false, 16 << 10}, stream);
      if (is_middle) return ran<F, 16, 2, 6, true>(p, kTwoEven, stream);
      return ran<F, 16, 2, 8, true>(p, kOne, stream);
    case Step::kDown:
      if (is_small) return ran<F, 16, 2, 8, false>(p, kTwoLate, stream);
      if (is_middle) return ran<F, 16, 2, 10, false>(p, kTwoLate, stream);
      return ran<F, 16, 2, 8, false>(p, kOneEven, stream);
  }
  return false;
}

// 3584 inputs are 56 steps, which 14 warps share evenly.
template <Format F>
bool eight_bits_ran(const FusedProduct& p, cudaStream_t stream) {
  const bool is_large = hidden_of(p) >= kMiddle;
  switch (step_of(p)) {
    case Step::kFirst:
      return is_large ? ran<F, 14, 2, 3, false>(p, kTwo, stream)
                      : ran<F, 14, 2, 6, false>(p, kTwo, stream);
    case Step::kOutput:
      return is_large ? ran<F, 14, 2, 4, false>(p, kAlone, stream)
                      : ran<F, 14, 2, 6, false>(p, kTwo, stream);
    case Step::kGated:
      if (!is_large) return ran<F, 14, 2, 5, true>(p, kTwoEven, stream);
      return ran<F, 16, 2, 4, true>(p, {2, false, kAside, true}, stream);
    case Step::kDown:
      return is_large ? ran<F, 16, 2, 6, false>(p, kOneEven, stream)
                      : ran<F, 14, 2, 6, false>(p, kAlone, stream);
  }
  return false;
}

// 3584 inputs are 28 steps. To split down's 18944 costs more than it saves.
bool int4_ran(const FusedProduct& p, cudaStream_t stream) {
  constexpr Format F = Format::kInt4;
  switch (step_of(p)) {
    case Step::kFirst:
      return ran<F, 14, 2, 3, false, true>(p, kTwoEven, stream);
    case Step::kOutput:
      return ran<F, 14, 2, 3, false, true>(p, {1, false, 96 << 10}, stream);
    case Step::kGated:
      return ran<F, 14, 2, 4, true, true>(p, kTwoEven, stream);
    case Step::kDown:
      return ran<F, 14, 2, 4, false>(p, kTwo, stream);
  }
  return false;
}

// Where those take too much shared memory.
template <Format F>
void run_any(const FusedProduct& p, cudaStream_t stream) {
  p.gated ? run<F, Plan<16, 2, 3, true>>(p, kTwo, stream)
          : run<F, Plan<16, 2, 3, false>>(p, kTwo, stream);
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
      if (!bfloat16_ran<Format::kPlain>(p, stream)) run_any<Format::kPlain>(p, stream);
      return;
    case Format::kInt8:
      if (!eight_bits_ran<Format::kInt8>(p, stream)) run_any<Format::kInt8>(p, stream);
      return;
    case Format::kE4M3:
      if (!eight_bits_ran<Format::kE4M3>(p, stream)) run_any<Format::kE4M3>(p, stream);
      return;
    default:
      if (!int4_ran(p, stream)) run_any<Format::kInt4>(p, stream);
  }
}

}  // namespace qinfer::cuda
