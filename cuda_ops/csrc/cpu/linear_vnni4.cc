// Products over int4 weights with a scale for each 64 inputs, or for several times so many, by
// AVX-512's dot products of bytes: x becomes integers too, and a group's sums are exact.
#if defined(__AVX512VNNI__)

#include "dot_bytes.h"

namespace qinfer {
namespace {

constexpr int64_t kGroupInputs = 64, kGroupBytes = kGroupInputs / 2 * kLanes;
constexpr float kSmallPlaneMax = 16319.0f;  // 127 * 128 + 63

// In each group x = scale * (128 * high + low), both planes signed: here the weights, 0 to 15, are
// unsigned. `sums`: of every group's numbers, to take the weights' offset of 8 off again.
struct SignedPlanes {
  std::shared_ptr<int8_t[]> high, low;
  std::shared_ptr<float[]> scale, sums;

  // Those of the groups from `first` on.
  SignedPlanes from(int64_t first) const {
    return {{high, high.get() + first * kGroupInputs},
            {low, low.get() + first * kGroupInputs},
            {scale, scale.get() + first},
            {sums, sums.get() + first}};
  }
};

// Group g of all, whose inputs are at x.
void split_group(const float* x, const SignedPlanes& planes, int64_t g) {
  const int64_t first = g * kGroupInputs;
  const float largest = largest_magnitude(x, kGroupInputs);
  const float inverse = largest > 0 ? kSmallPlaneMax / largest : 0;
  I32 total = {};
  for (int64_t k = first; k < first + kGroupInputs; k += kLanes) {
    const I32 q = __builtin_convertvector(nearest(load<F32>(x + k - first) * inverse), I32);
    const I32 low = ((q + 64) & 127) - 64;
    total += q;
    store(&planes.low[k], __builtin_convertvector(low, I8));
    store(&planes.high[k], __builtin_convertvector((q - low) >> 7, I8));
  }
  planes.sums[g] = sum(__builtin_convertvector(total, F32));
  planes.scale[g] = largest / kSmallPlaneMax;
}

template <int R, int P>
void int4_tile(const Job& job, const SignedPlanes& x, int64_t row, const Places& places) {
  const int64_t groups = job.in / kGroupInputs, scales = job.groups(), shared = groups / scales;
  F32 acc[R][P] = {};
  for (int64_t g = 0; g < groups; ++g) {
    I32 high[R][P] = {}, low[R][P] = {};
    for (int64_t s = 0; s < kGroupInputs / 8; ++s)
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i) {
        const char* at = job.w + places[i] * job.panel + g * kGroupBytes + s * 64;
        const I32 both = load<I32>(at);
        const I32 first = both & 0x0F0F0F0F, second = (both >> 4) & 0x0F0F0F0F;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const int64_t k = (row + r) * job.in + g * kGroupInputs + s * 8;
          high[r][i] = dot4(high[r][i], first, splat4(&x.high[k]));
          high[r][i] = dot4(high[r][i], second, splat4(&x.high[k + 4]));
          low[r][i] = dot4(low[r][i], first, splat4(&x.low[k]));
          low[r][i] = dot4(low[r][i], second, splat4(&x.low[k + 4]));
        }
      }
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const F32 scale = load<F32>(job.scale + (places[i] * scales + g / shared) * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F32 upper = __builtin_convertvector(high[r][i], F32) * 128.0f;
        const F32 lower = __builtin_convertvector(low[r][i], F32);
        const int64_t at = (row + r) * groups + g;
        acc[r][i] += (upper + lower - 8.0f * x.sums[at]) * (scale * x.scale[at]);
      }
    }
  }
  Job plain = job;  // the scales have been used up
  plain.scale = nullptr;
  for (int i = 0; i < P; ++i) finish(plain, row, R, places[i], &acc[0][i], P);
}

template <int R, int P>
struct Int4Tile {
  static constexpr int kPanels = 2;
  static void run(const Job& job, const SignedPlanes& x, int64_t row, const Places& places) {
    int4_tile<R, P>(job, x, row, places);
  }
};

}  // namespace

int64_t int4_panel_bytes(int64_t in) { return in / 2 * kLanes; }

Task int4_product(const Job& job) {
  const int64_t size = job.rows * job.in, groups = size / kGroupInputs;
  const int64_t in_row = job.in / kGroupInputs;
  const SignedPlanes x{scratch<int8_t>(size), scratch<int8_t>(size), scratch<float>(groups),
                       scratch<float>(groups)};
  return [=](const Worker& me) {
    me.share(groups, [&](int64_t first, int64_t end) {
      for (int64_t g = first; g < end; ++g)
        split_group(job.row(g / in_row) + g % in_row * kGroupInputs, x, g);
    });
    me.wait();
    each_weight(job, [&](const Job& part, int64_t first) {
      over_tiles<Int4Tile, 4>(part, x.from(first * in_row), me);
    });
  };
}

// Values -8 to 7; a byte holds input k of its step in its low half and input k + 4 in its high one.
void pack_int4(const int8_t* weight, char* packed, int64_t out, int64_t in) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p) {
    char* to = packed + p * int4_panel_bytes(in);
    for (int64_t s = 0; s < in / 8; ++s)
      for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int64_t o = p * kLanes + lane, at = o * in + s * 8 + i;
          const int low = o < out ? weight[at] + 8 : 8, high = o < out ? weight[at + 4] + 8 : 8;
          *to++ = static_cast<char>(low | high << 4);
        }
  }
}

}  // namespace qinfer

#endif
