#include "columns.h"

#include <algorithm>

#include "simd.h"

namespace qinfer {
namespace {

// In vectors, then the rest: work(k, count) for each, in order.
template <typename Work>
void in_vectors(int64_t first, int64_t end, const Work& work) {
  for (int64_t k = first; k < end; k += kLanes) work(k, std::min<int64_t>(kLanes, end - k));
}

float total(const float* x, int64_t count) {
  F32 parts = {};
  in_vectors(0, count, [&](int64_t k, int64_t here) { parts += load_some(x + k, here); });
  return sum(parts);
}

}  // namespace

Task scale_shift(const float* x, const float* scale, const float* shift, float* y, int64_t rows,
                 int64_t width) {
  return [=](const Worker& me) {
    me.share(rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r)
        in_vectors(0, width, [&](int64_t k, int64_t count) {
          F32 v = load_some(x + r * width + k, count);
          if (shift) v += load_some(shift + k, count);
          if (scale) v *= load_some(scale + k, count);
          store_some(y + r * width + k, v, count);
        });
    });
  };
}

Task take_columns(const float* x, const int64_t* columns, float* y, int64_t rows, int64_t from,
                  int64_t width) {
  return [=](const Worker& me) {
    me.share(rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r)
        for (int64_t i = 0; i < width; ++i) y[r * width + i] = x[r * from + columns[i]];
    });
  };
}

Task join_columns(const std::vector<const float*>& parts, const std::vector<int64_t>& widths,
                  float* y, int64_t rows) {
  return [=](const Worker& me) {
    me.share(rows, [&](int64_t first, int64_t end) {
      int64_t whole = 0;
      for (int64_t width : widths) whole += width;
      for (int64_t r = first; r < end; ++r) {
        float* to = y + r * whole;
        for (size_t i = 0; i < parts.size(); ++i)
          to = std::copy_n(parts[i] + r * widths[i], widths[i], to);
      }
    });
  };
}

Task add_zero_points(const float* y, const float* x, const float* zero, float* result, int64_t rows,
                     int64_t in, int64_t out, int64_t groups) {
  auto sums = scratch<float>(rows * groups);
  return [=](const Worker& me) {
    me.share(rows * groups, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i)
        sums[i] = total(x + i / groups * in + i % groups * (in / groups), in / groups);
    });
    me.wait();
    const int64_t parts = (out + kLanes - 1) / kLanes;
    me.share(parts, [&](int64_t first, int64_t end) {
      for (int64_t r = 0; r < rows; ++r)
        in_vectors(first * kLanes, std::min(end * kLanes, out), [&](int64_t o, int64_t count) {
          F32 v = load_some(y + r * out + o, count);
          for (int64_t g = 0; g < groups; ++g)
            v = add_product(v, load_some(zero + g * out + o, count), splat(sums[r * groups + g]));
          store_some(result + r * out + o, v, count);
        });
    });
  };
}

}  // namespace qinfer
