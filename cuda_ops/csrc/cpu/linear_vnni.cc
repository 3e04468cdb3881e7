// Products over int8 weights by AVX-512's dot products of bytes: x becomes integers too, and the
// sums are exact.
#if defined(__AVX512VNNI__)

#include <cmath>

#include "dot_bytes.h"

namespace qinfer {
namespace {

// ---- int8: x as two planes of eight bits, exact integer sums ----------------------------------

constexpr float kPlaneMax = 32639.0f;  // 127 * 256 + 127: the upper plane stays within a byte

// x = scale * (256 * (high - 128) + low), both planes unsigned as the instruction wants.
struct Planes {
  std::shared_ptr<uint8_t[]> high, low;
  std::shared_ptr<float[]> scale;
  int64_t stride;

  // Those of the rows from `first` on.
  Planes from(int64_t first) const {
    return {{high, high.get() + first * stride},
            {low, low.get() + first * stride},
            {scale, scale.get() + first},
            stride};
  }
};

void split_row(const float* row, int64_t in, const Planes& planes, int64_t r) {
  const float largest = largest_magnitude(row, in);
  const float inverse = largest > 0 ? kPlaneMax / largest : 0;
  uint8_t* high = planes.high.get() + r * planes.stride;
  uint8_t* low = planes.low.get() + r * planes.stride;
  int64_t k = 0;
  for (; k + kLanes <= in; k += kLanes) {
    const I32 q = __builtin_convertvector(nearest(load<F32>(row + k) * inverse), I32);
    store(high + k, __builtin_convertvector((q >> 8) + 128, U8));
    store(low + k, __builtin_convertvector(q & 255, U8));
  }
  for (; k < planes.stride; ++k) {
    const int32_t q = k < in ? static_cast<int32_t>(std::nearbyintf(row[k] * inverse)) : 0;
    high[k] = static_cast<uint8_t>((q >> 8) + 128);
    low[k] = static_cast<uint8_t>(q & 255);
  }
  planes.scale[r] = largest / kPlaneMax;
}

template <int R, int P>
void int8_tile(const Job& job, const Planes& x, int64_t row, const Places& places) {
  const int64_t steps = x.stride / 4;
  I32 high[R][P] = {}, low[R][P] = {}, sums[P] = {};
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const I32 w = load<I32>(job.w + places[i] * job.panel + s * 64);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const int64_t at = (row + r) * x.stride + 4 * s;
        high[r][i] = dot4(high[r][i], splat4(&x.high[at]), w);
        low[r][i] = dot4(low[r][i], splat4(&x.low[at]), w);
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) {
    sums[i] = load<I32>(job.w + places[i] * job.panel + steps * 64);
    F32 whole[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F32 upper = __builtin_convertvector(high[r][i] - 128 * sums[i], F32);
      const F32 lower = __builtin_convertvector(low[r][i], F32);
      whole[r] = upper * 256.0f + lower;
    }
    finish(job, row, R, places[i], whole, 1);
  }
}

// ---- int8 activations: one plane ---------------------------------------------------------------

// x = scale * (bytes - 128).
struct Plane {
  std::shared_ptr<uint8_t[]> bytes;
  std::shared_ptr<float[]> scale;
  int64_t stride;

  // That of the rows from `first` on.
  Plane from(int64_t first) const {
    return {{bytes, bytes.get() + first * stride}, {scale, scale.get() + first}, stride};
  }
};

// With `given` as the scale, or by the row's largest magnitude. Numbers are clipped to a byte.
void round_row(const float* row, int64_t in, const float* given, const Plane& plane, int64_t r) {
  const float scale = given ? *given : std::max(largest_magnitude(row, in) / 127.0f, 1e-30f);
  uint8_t* to = plane.bytes.get() + r * plane.stride;
  int64_t k = 0;
  for (; k < in; k += kLanes) {
    float buffer[kLanes] = {};
    const int64_t count = std::min<int64_t>(kLanes, in - k);
    std::copy_n(row + k, count, buffer);
    const F32 clipped = max(min(load<F32>(buffer) / scale, splat(127)), splat(-128));
    const I32 q = __builtin_convertvector(nearest(clipped), I32) + 128;
    uint8_t bytes[kLanes];
    store(bytes, __builtin_convertvector(q, U8));
    std::copy_n(bytes, count, to + k);
  }
  std::fill(to + in, to + plane.stride, uint8_t{128});
  plane.scale[r] = scale;
}

template <int R, int P>
void a8w8_tile(const Job& job, const Plane& x, int64_t row, const Places& places) {
  const int64_t steps = x.stride / 4;
  I32 acc[R][P] = {};
  for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 16
    for (int i = 0; i < P; ++i) {
      const I32 w = load<I32>(job.w + places[i] * job.panel + s * 64);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        acc[r][i] = dot4(acc[r][i], splat4(&x.bytes[(row + r) * x.stride + 4 * s]), w);
    }
#pragma GCC unroll 16
  for (int i = 0; i < P; ++i) {
    const I32 sums = load<I32>(job.w + places[i] * job.panel + steps * 64);
    F32 whole[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) whole[r] = __builtin_convertvector(acc[r][i] - 128 * sums, F32);
    finish(job, row, R, places[i], whole, 1);
  }
}

template <int R, int P>
struct Int8Tile {
  static constexpr int kPanels = 2;  // at once, for many rows: what the registers hold
  static void run(const Job& job, const Planes& x, int64_t row, const Places& places) {
    int8_tile<R, P>(job, x, row, places);
  }
};

template <int R, int P>
struct A8W8Tile {
  static constexpr int kPanels = 4;
  static void run(const Job& job, const Plane& x, int64_t row, const Places& places) {
    a8w8_tile<R, P>(job, x, row, places);
  }
};

}  // namespace

int64_t int8_panel_bytes(int64_t in) { return (divide_up(in, 4) + 1) * 64; }

Task int8_product(const Job& job) {
  const int64_t stride = divide_up(job.in, 4) * 4, size = job.rows * stride;
  const Planes x{scratch<uint8_t>(size), scratch<uint8_t>(size), scratch<float>(job.rows), stride};
  Job product = job;
  product.row_scale = x.scale.get();
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) split_row(job.row(r), job.in, x, r);
    });
    me.wait();
    each_weight(product, [&](const Job& part, int64_t first) {
      over_tiles<Int8Tile, 6>(part, x.from(first), me);
    });
  };
}

Task a8w8_product(const Job& job, const float* input_scale) {
  const int64_t stride = divide_up(job.in, 4) * 4;
  const Plane x{scratch<uint8_t>(job.rows * stride), scratch<float>(job.rows), stride};
  Job product = job;
  product.row_scale = x.scale.get();
  return [=](const Worker& me) {
    me.share(job.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) round_row(job.row(r), job.in, input_scale, x, r);
    });
    me.wait();
    each_weight(product, [&](const Job& part, int64_t first) {
      over_tiles<A8W8Tile, 6>(part, x.from(first), me);
    });
  };
}

// The sum of each output's weights follows its panel: the planes' offset is taken off with it.
void pack_int8(const int8_t* weight, char* packed, int64_t out, int64_t in) {
  const int64_t steps = divide_up(in, 4), bytes = (steps + 1) * 64;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < divide_up(out, kLanes); ++p) {
    const int64_t rows = std::min<int64_t>(kLanes, out - p * kLanes);
    pack_panels(weight + p * kLanes * in, reinterpret_cast<int8_t*>(packed + p * bytes), rows, in,
                4);
    int32_t sums[kLanes] = {};
    for (int64_t o = 0; o < rows; ++o)
      for (int64_t k = 0; k < in; ++k) sums[o] += weight[(p * kLanes + o) * in + k];
    std::memcpy(packed + p * bytes + steps * 64, sums, 64);
  }
}

}  // namespace qinfer

#endif
