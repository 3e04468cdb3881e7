#include "rows.h"

#include <algorithm>
#include <cmath>

#include "simd.h"

namespace qinfer {
namespace {

inline float widen(uint16_t bits, Float type) {
  const uint32_t wide = bits;
  if (type == Float::kBF16) {
    const uint32_t shifted = wide << 16;
    float value;
    std::memcpy(&value, &shifted, 4);
    return value;
  }
  // A float16 moved into a float's place is 2^112 smaller; subnormals come out right too.
  const uint32_t moved = (wide & 0x8000u) << 16 | (wide & 0x7FFFu) << 13;
  float value;
  std::memcpy(&value, &moved, 4);
  return value * 0x1p112f;
}

void norm_row(const float* x, const float* residual, const float* weight, float eps, float* y,
              float* total, int64_t width) {
  const int64_t whole = width / kLanes * kLanes;
  const float* values = residual ? total : x;
  F32 part[2] = {};  // two sums in turn: a single one would wait for its own last addition
  float squares = 0;
  for (int64_t k = 0; k < whole; k += kLanes) {
    F32 v = load<F32>(x + k);
    if (residual) v += load<F32>(residual + k), store(total + k, v);
    part[k / kLanes % 2] += v * v;
  }
  for (int64_t k = whole; k < width; ++k) {
    if (residual) total[k] = x[k] + residual[k];
    squares += values[k] * values[k];
  }
  const float mean = (sum(part[0] + part[1]) + squares) / width;
  const float inverse = 1.0f / std::sqrt(mean + eps);
  for (int64_t k = 0; k < whole; k += kLanes)
    store(y + k, load<F32>(values + k) * inverse * load<F32>(weight + k));
  for (int64_t k = whole; k < width; ++k) y[k] = values[k] * inverse * weight[k];
}

inline F32 silu(F32 x) { return x / (1.0f + exp(-x)); }

void gate_row(const float* gate, const float* up, float* y, int64_t first, int64_t end) {
  int64_t k = first;
  for (; k + kLanes <= end; k += kLanes)
    store(y + k, silu(load<F32>(gate + k)) * load<F32>(up + k));
  for (; k < end; ++k) y[k] = gate[k] / (1.0f + std::exp(-gate[k])) * up[k];
}

// The first index from `first` to `end` with the largest value.
int64_t largest(const float* x, int64_t first, int64_t end) {
  F32 best = splat(x[first]);
  int64_t k = first;
  for (; k + kLanes <= end; k += kLanes) best = max(load<F32>(x + k), best);
  float top = max(best);
  for (; k < end; ++k) top = std::max(top, x[k]);
  for (k = first; k < end; ++k)
    if (x[k] == top) return k;
  return first;  // nothing equals a NaN
}

}  // namespace

Task gather_rows(Float type, const void* table, const int64_t* ids, float* y, int64_t rows,
                 int64_t width) {
  return [=](const Worker& me) {
    me.share(rows, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) {
        const int64_t from = ids[t] * width;
        if (type == Float::kF32) {
          std::copy_n(static_cast<const float*>(table) + from, width, y + t * width);
          continue;
        }
        const auto* bits = static_cast<const uint16_t*>(table) + from;
        for (int64_t k = 0; k < width; ++k) y[t * width + k] = widen(bits[k], type);
      }
    });
  };
}

Task rms_norm(const float* x, const float* residual, const float* weight, float eps, float* y,
              float* total, int64_t rows, int64_t width) {
  return [=](const Worker& me) {
    me.share(rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        const int64_t at = r * width;
        norm_row(x + at, residual ? residual + at : nullptr, weight, eps, y + at,
                 total ? total + at : nullptr, width);
      }
    });
  };
}

Task silu_gate(const float* x, float* y, int64_t rows, int64_t width) {
  constexpr int64_t kPart = 16 * kLanes;
  const int64_t parts = (width + kPart - 1) / kPart;
  return [=](const Worker& me) {
    me.share(rows * parts, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        const int64_t row = i / parts, from = i % parts * kPart;
        const float* gate = x + row * 2 * width;
        gate_row(gate, gate + width, y + row * width, from, std::min(from + kPart, width));
      }
    });
  };
}

Task argmax(const float* x, int64_t* index, int64_t rows, int64_t width) {
  constexpr int64_t kPart = 4096;
  const int64_t parts = (width + kPart - 1) / kPart;
  auto found = scratch<int64_t>(rows * parts);
  return [=](const Worker& me) {
    me.share(rows * parts, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        const int64_t from = i % parts * kPart;
        found[i] = largest(x + i / parts * width, from, std::min(from + kPart, width));
      }
    });
    me.wait();
    me.share(rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        const float* row = x + r * width;
        int64_t best = found[r * parts];
        for (int64_t p = 1; p < parts; ++p)
          if (row[found[r * parts + p]] > row[best]) best = found[r * parts + p];
        index[r] = best;
      }
    });
  };
}

}  // namespace qinfer
