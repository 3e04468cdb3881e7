// Products of 3 to 256 rows on Hopper: how they are shared out.
#include <algorithm>

#include "hopper_products.h"
#include "rows_hopper.cuh"

namespace qinfer::cuda {
namespace {

// Boxes of `wide` bytes from `rows` rows of `bytes` bytes that lie one after the other.
CUtensorMap map_of(const void* from, uint64_t rows, uint64_t bytes, uint32_t wide,
                   uint32_t box_rows) {
  const uint64_t sizes[] = {bytes, rows}, strides[] = {bytes};
  const uint32_t box[] = {wide, box_rows};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, from, 2, sizes, strides, box);
}

// Tiles of `channels`, and steps.
struct Work {
  int64_t tiles, steps;
};
Work work(const Product& p, int channels, int step = kInputs) {
  return {(p.out + channels - 1) / channels, (p.in + step - 1) / step};
}

template <class S>
Work work(const Product& p) {
  return work(p, S::kChannels, S::kStep);
}

// `blocks` share a tile's inputs.
template <class S, int Held>
void run(const Product& p, int blocks, cudaStream_t stream) {
  constexpr int64_t kRoom = 224 << 10;  // bytes of shared memory for the blocks
  auto* kernel = rows_kernel<S, Held>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRoom),
        "raising a kernel's shared memory");
  constexpr bool kByGroup = S::kFormat == Format::kInt4;
  constexpr bool kIsPlain = S::kFormat == Format::kPlain;
  const int64_t row_bytes = kByGroup ? int4_bytes(1, p.in) : p.in * (kIsPlain ? 2 : 1);
  const int64_t x_bytes = p.in * (S::kFormat == Format::kE4M3 ? 1 : 2);
  const Maps maps{map_of(p.x, p.rows, x_bytes, kBytes, S::kRows),
                  map_of(p.weight, p.out, row_bytes, S::kPitch, S::kBox)};
  const auto [tiles, steps] = work<S>(p);
  // the fewer blocks there are, the more each has to have on its way
  const int64_t held = std::min<int64_t>((tiles * blocks - 1) / multiprocessors() + 1, Held);
  const int64_t stages =
      std::min<int64_t>({(kRoom / held - 3072) / S::kStage, steps / blocks + 1, kMostStages});
  const int64_t shared = std::max<int64_t>(stages * S::kStage, S::kChannels * S::kRows * 4) + 1024;
  const Outputs o{kByGroup ? nullptr : p.scale, p.x_scale, p.bias, p.y, int(p.rows), int(p.out)};
  const Arguments a{o, p.scale, int(p.in), int(steps), int(stages)};
  launch_clusters(kernel, dim3(blocks, tiles), blocks, S::kThreads, shared, stream, maps, a);
}

// How many blocks share a tile's inputs: as many as fit on the card at once, which holds `held` on
// each multiprocessor, if each has `least` steps.
int split_of(const Work& w, int held, int least = 2) {
  int blocks = 1;
  while (blocks < 8 && w.tiles * blocks * 2 <= held * multiprocessors() &&
         w.steps >= blocks * 2 * least)
    blocks *= 2;
  return blocks;
}

// The same for many rows, of which a block computes as fast alone as beside others: two that share
// a tile where the last round of blocks is less than half full.
int split_of_many(const Work& w) {
  const int64_t slots = multiprocessors();
  if (w.tiles <= slots) return split_of(w, 1);
  const auto rounds = [&](int64_t blocks) { return (w.tiles * blocks + slots - 1) / slots; };
  return rounds(2) < 2 * rounds(1) ? 2 : 1;
}

template <class T, Format F, int R, int G, int H>
void run_split(const Product& p, cudaStream_t stream) {
  using S = Shape<T, F, R, G>;
  const Work w = work<S>(p);
  run<S, H>(p, R > 64 && H == 1 ? split_of_many(w) : split_of(w, H), stream);
}

// Small tiles, so that all multiprocessors end at about the same time.
template <class T, Format F>
void up_to_16(const Product& p, cudaStream_t stream) {
  using S = Shape<T, F, kFewHopperRows, 1>;
  run<S, 6>(p, split_of(work<S>(p), 3, S::kAsHeld ? 8 : 4), stream);
}

// Wider tiles or more blocks on a multiprocessor where those of the others would come in two
// rounds, the second of them almost empty.
template <class T, Format F>
void up_to_64(const Product& p, cudaStream_t stream) {
  const int64_t slots = multiprocessors();
  const bool one_round = work(p, 128).tiles <= 2 * slots;
  if constexpr (F == Format::kE4M3) {
    if (!one_round && work(p, 192).tiles <= 2 * slots) return run_split<T, F, 64, 3, 2>(p, stream);
  } else if constexpr (F == Format::kInt8) {
    if (!one_round && work(p, 128).tiles <= 3 * slots) return run_split<T, F, 64, 2, 3>(p, stream);
  } else {
    if (!one_round && work(p, 320).tiles <= slots) return run_split<T, F, 64, 5, 1>(p, stream);
  }
  run_split<T, F, 64, 2, 2>(p, stream);
}

template <class T, Format F>
void up_to_128(const Product& p, cudaStream_t stream) {
  if constexpr (F == Format::kE4M3)
    run_split<T, F, 128, 2, 2>(p, stream);
  else if (work(p, 128).tiles > multiprocessors())
    run_split<T, F, 128, 3, 1>(p, stream);
  else
    run_split<T, F, 128, 2, 1>(p, stream);
}

template <class T, Format F>
void of_rows(const Product& p, cudaStream_t stream) {
  if (p.rows <= kFewHopperRows)
    up_to_16<T, F>(p, stream);
  else if (p.rows <= 64)
    up_to_64<T, F>(p, stream);
  else if (p.rows <= 128)
    up_to_128<T, F>(p, stream);
  else if constexpr (F != Format::kE4M3)
    run_split<T, F, 256, 2, 1>(p, stream);
}

template <class T>
void of_format(Format format, const Product& p, cudaStream_t stream) {
  switch (format) {
    case Format::kPlain:
      return up_to_16<T, Format::kPlain>(p, stream);
    case Format::kInt8:
      return of_rows<T, Format::kInt8>(p, stream);
    case Format::kInt4:
      return of_rows<T, Format::kInt4>(p, stream);
    default:
      return of_rows<T, Format::kE4M3>(p, stream);
  }
}

// Up to 16 rows, against linear.cu (benchmarks/gpu/NOTES.md).
bool few_suit(Format format, int64_t rows, int64_t numbers) {
  constexpr int64_t kSmall = 4 << 20, kMedium = 12 << 20;  // numbers of a weight
  switch (format) {
    case Format::kPlain:
      return rows > 8 || numbers >= kSmall;
    case Format::kInt8:
      return numbers >= (rows > 8 ? kSmall : kMedium);
    case Format::kInt4:
      return rows > 8 && numbers >= kSmall;
    default:
      return true;
  }
}
}  // namespace

bool rows_hopper_suits(Format format, int64_t rows, int64_t in, int64_t out) {
  if (!is_sm90() || rows < 3) return false;
  if (rows <= kFewHopperRows) return few_suit(format, rows, in * out);
  if (format == Format::kE4M3) return rows <= (in > out ? 128 : 64);
  return format != Format::kPlain;
}

void rows_hopper(Type type, Format format, const Product& p, cudaStream_t stream) {
  type == Type::kBF16 ? of_format<BF16>(format, p, stream) : of_format<F16>(format, p, stream);
}

}  // namespace qinfer::cuda
