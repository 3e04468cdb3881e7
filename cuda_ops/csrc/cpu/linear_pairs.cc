// Products of integer weights by way of 16-bit pairs: groups of any size everywhere; int8 and int4
// where there are no instructions for bytes (linear_vnni.cc).
#include <cmath>
#include <vector>

#include "pairs.h"

namespace qinfer {

void Rounded::round(const float* x, int64_t count, int64_t g, float by, float least,
                    float most) const {
  int16_t* to = numbers.get() + g * padded;
  I32 total = {};
  for (int64_t k = 0; k < count; k += kLanes) {
    const F32 part = load_some(x + k, count - k);
    const F32 clipped = max(min(part / by, splat(most)), splat(least));
    const I32 q = __builtin_convertvector(nearest(clipped), I32);
    store_some(to + k, __builtin_convertvector(q, I16), count - k);
    total += q;
  }
  std::fill(to + count, to + padded, int16_t{0});
  int32_t lanes[kLanes];
  store(lanes, total);
  sums[g] = 0;
  for (int32_t lane : lanes) sums[g] += lane;
  scale[g] = by;
}

namespace {

constexpr float kMost = 32767;

// The inputs of a row in equal groups, and the scales that belong to them.
struct Grouped {
  const Rounded& x;
  const float* scale;
};

template <typename W>
struct Tiles {
  template <int R, int P>
  struct Tile {
    static constexpr int kPanels = kRegisters == 32 ? 4 : 2;
    static void run(const Job& job, const Grouped& all, int64_t row, const Places& places) {
      pair_tile<W, R, P>(job, all.x, all.scale, row, places);
    }
  };
};

constexpr int64_t kWidenRows = 16;  // from here on widening weights to 16 bits once pays

// Many rows, with a few panels at a time widened.
template <typename W>
void over_widened(const Job& job, const Grouped& all, const Worker& me) {
  const int64_t steps = all.x.groups * all.x.padded / W::kStep;
  me.share(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    std::vector<int16_t> wide(kGroup * steps * W::kStep * kLanes);
    Job part = job;
    part.panel = steps * W::kStep * kLanes * sizeof(int16_t);
    for (int64_t p = first; p < end; p += kGroup) {
      const int64_t stop = std::min(p + kGroup, end);
      W::widen(job.w + p * job.panel, wide.data(), (stop - p) * steps);
      part.w = reinterpret_cast<const char*>(wide.data()) - p * part.panel;
      rows_of<Tiles<Wide>::Tile, 6>(part, all, p, stop);
    }
  });
}

// Round(x, count, g): group g of all, whose inputs are at x.
template <typename W, typename Round>
Task pair_product(Job job, const Rounded& x, bool has_group_scales, const Round& round) {
  const int64_t size = job.in / x.groups;
  return [=](const Worker& me) {
    me.share(job.rows * x.groups, [&](int64_t first, int64_t end) {
      for (int64_t g = first; g < end; ++g)
        round(job.row(g / x.groups) + g % x.groups * size, size, g);
    });
    me.wait();
    each_weight(job, [&](Job part, int64_t first) {
      const Rounded rows = x.from(first);
      const float* scale = has_group_scales ? part.scale : nullptr;
      if (has_group_scales)
        part.scale = nullptr;
      else
        part.row_scale = rows.scale.get();
      const Grouped all{rows, scale};
      if (part.rows < kWidenRows)
        over_tiles<Tiles<W>::template Tile, 6>(part, all, me);
      else
        over_widened<W>(part, all, me);
    });
  };
}

template <typename W>
int64_t padded(int64_t group) {
  return divide_up(group, W::kStep) * W::kStep;
}

// To 16 bits of each group's largest magnitude. `shared`: groups with one scale, 0 if the weight
// has no scales of groups.
template <typename W>
Task product_of_groups(const Job& job, int64_t group, int64_t shared, int64_t exact) {
  const bool has_group_scales = shared > 0;
  const Rounded x = Rounded::make(job.rows, job.in / group, padded<W>(group),
                                  has_group_scales ? shared : 1, exact);
  return pair_product<W>(
      job, x, has_group_scales, [=](const float* from, int64_t count, int64_t g) {
        const float by = std::max(largest_magnitude(from, count) / kMost, 1e-30f);
        x.round(from, count, g, by, -kMost, kMost);
      });
}

// 2^31 / (128 * 32767) and 2^31 / (23 * 32767), whole steps of them.
constexpr int64_t kExactBytes = 512, kExactNibbles = 2048;

// Weights in groups of inputs, each padded to whole steps, byte after byte as `put` says.
template <typename W, typename Put>
void pack_groups(char* packed, int64_t out, int64_t in, int64_t group, const Put& put) {
  const int64_t steps = in / group * (padded<W>(group) / W::kStep);
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p) {
    char* to = packed + p * steps * W::kBytes;
    for (int64_t g = 0; g < in; g += group)
      for (int64_t k = 0; k < group; k += W::kStep)
        for (int lane = 0; lane < kLanes; ++lane)
          for (int i = 0; i < W::kBytes / kLanes; ++i) *to++ = put(p * kLanes + lane, g, k, i);
  }
}

}  // namespace

int64_t group8_panel_bytes(int64_t in, int64_t group) {
  return in / group * padded<Bytes>(group) * kLanes;
}

int64_t group4_panel_bytes(int64_t in, int64_t group) {
  return in / group * padded<Nibbles>(group) / 2 * kLanes;
}

void pack_group8(const int8_t* weight, char* packed, int64_t out, int64_t in, int64_t group) {
  pack_groups<Bytes>(packed, out, in, group, [=](int64_t o, int64_t g, int64_t k, int i) {
    return o < out && k + i < group ? weight[o * in + g + k + i] : int8_t{0};
  });
}

// Byte i has inputs 4 (i / 2) + i % 2 ... of its step: bits of a 16-bit number hold, from the
// lowest up, inputs 0, 2, 4, 6 in the first and 1, 3, 5, 7 in the second.
void pack_group4(const int8_t* weight, char* packed, int64_t out, int64_t in, int64_t group) {
  pack_groups<Nibbles>(packed, out, in, group, [=](int64_t o, int64_t g, int64_t k, int i) {
    const auto code = [&](int64_t at) {
      return o < out && at < group ? weight[o * in + g + at] + 8 : 8;
    };
    const int64_t first = k + i / 2 + i % 2 * 4;
    return static_cast<char>(code(first) | code(first + 2) << 4);
  });
}

Task group8_product(const Job& job, int64_t group) {
  return product_of_groups<Bytes>(job, group, 1, kExactBytes);
}

Task group4_product(const Job& job, int64_t group) {
  return product_of_groups<Nibbles>(job, group, 1, kExactNibbles);
}

#if !defined(__AVX512VNNI__)

constexpr int64_t kGroupInputs = 64;

int64_t int8_panel_bytes(int64_t in) { return group8_panel_bytes(in, in); }

void pack_int8(const int8_t* weight, char* packed, int64_t out, int64_t in) {
  pack_group8(weight, packed, out, in, in);
}

Task int8_product(const Job& job) { return product_of_groups<Bytes>(job, job.in, 0, kExactBytes); }

Task a8w8_product(const Job& job, const float* input_scale) {
  constexpr int64_t kExact = 65536;  // below 2^31 / 128^2
  const Rounded x = Rounded::make(job.rows, 1, padded<Bytes>(job.in), 1, kExact);
  return pair_product<Bytes>(job, x, false, [=](const float* from, int64_t count, int64_t g) {
    const float own = std::max(largest_magnitude(from, count) / 127.0f, 1e-30f);
    x.round(from, count, g, input_scale ? *input_scale : own, -128, 127);
  });
}

int64_t int4_panel_bytes(int64_t in) { return group4_panel_bytes(in, kGroupInputs); }

void pack_int4(const int8_t* weight, char* packed, int64_t out, int64_t in) {
  pack_group4(weight, packed, out, in, kGroupInputs);
}

Task int4_product(const Job& job) {
  const int64_t shared = job.in / kGroupInputs / job.groups();
  return product_of_groups<Nibbles>(job, kGroupInputs, shared, kExactNibbles);
}

#endif

}  // namespace qinfer
