#include <algorithm>
#include <cmath>
#include <vector>

#include "attention.h"

namespace qinfer {
namespace {

// The scale of a head's numbers: its static one, or by the largest of them, which is then written.
template <typename Holds>
float scale_of(const float* row, const Cache& cache, bool is_key, int64_t slot, int64_t head) {
  float* scales = is_key ? cache.key_scales : cache.value_scales;
  if (cache.is_static) return scales[head];
  const int64_t lane = slot % kLanes;
  return scales[cache.group(slot - lane, head) + lane] =
             std::max(largest_magnitude(row, cache.dim) / Holds::kMost, 1e-30f);
}

// Write `dim` numbers, one every `stride`, each divided by `scale` where they are held scaled.
template <typename Holds>
void write_row(const float* from, float scale, typename Holds::Item* to, int64_t stride,
               int64_t dim) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    F32 v = load<F32>(from + d);
    if constexpr (Holds::kMost > 0) v /= scale;
    if (stride == 1) {
      Holds::write(to + d, v);
      continue;
    }
    typename Holds::Item items[kLanes];
    Holds::write(items, v);
    for (int i = 0; i < kLanes; ++i) to[(d + i) * stride] = items[i];
  }
}

// The head rotated and times `factor`; normalised before if there are weights for that.
void rotate(const float* from, const float* table, const float* weight, float eps, float factor,
            float* to, int64_t dim) {
  static thread_local std::vector<float> normed;
  if (weight) {
    normed.resize(dim);
    F32 squares = {};
    for (int64_t d = 0; d < dim; d += kLanes) squares += load<F32>(from + d) * load<F32>(from + d);
    const float inverse = 1.0f / std::sqrt(sum(squares) / dim + eps);
    for (int64_t d = 0; d < dim; ++d) normed[d] = from[d] * inverse * weight[d];
    from = normed.data();
  }
  const int64_t half = dim / 2;
  const float *cos = table, *sin = table + dim;
  for (int64_t d = 0; d < half; ++d) {
    to[d] = (from[d] * cos[d] + from[d + half] * sin[d]) * factor;
    to[d + half] = (from[d + half] * cos[d + half] + from[d] * sin[d + half]) * factor;
  }
}

template <typename Holds>
void write_head(const float* row, const Cache& cache, bool is_key, int64_t slot, int64_t head) {
  using Item = typename Holds::Item;
  const int64_t lane = slot % kLanes, group = slot - lane;
  float scale = 1;
  if constexpr (Holds::kMost > 0) scale = scale_of<Holds>(row, cache, is_key, slot, head);
  if (is_key) {
    Item* to = static_cast<Item*>(cache.keys) + cache.group(group, head) * cache.dim + lane;
    write_row<Holds>(row, scale, to, kLanes, cache.dim);
  } else {
    Item* to = static_cast<Item*>(cache.values) + (slot * cache.kv_heads + head) * cache.dim;
    write_row<Holds>(row, scale, to, 1, cache.dim);
  }
}

template <typename Holds>
void rotate_token(const Rotary& r, const Cache& cache, int64_t t, int64_t first, int64_t end) {
  static thread_local std::vector<float> turned;
  turned.resize(cache.dim);
  const int64_t dim = cache.dim, all = r.heads + 2 * cache.kv_heads;
  const float* table = r.table + r.positions[t] * 2 * dim;
  for (int64_t h = first; h < end; ++h) {
    const float* from = r.qkv + (t * all + h) * dim;
    const int64_t kv_head = (h - r.heads) % cache.kv_heads;
    if (h < r.heads) {
      const float factor = r.query_scale ? r.query_scale[r.positions[t]] : 1;
      rotate(from, table, r.q_norm, r.eps, factor, r.queries + (t * r.heads + h) * dim, dim);
    } else if (h < r.heads + cache.kv_heads) {
      rotate(from, table, r.k_norm, r.eps, 1, turned.data(), dim);
      write_head<Holds>(turned.data(), cache, true, r.slots[t], kv_head);
    } else {
      write_head<Holds>(from, cache, false, r.slots[t], kv_head);
    }
  }
}

}  // namespace

Task rotary_kv_write(const Rotary& rotary, const Cache& cache) {
  return [=](const Worker& me) {
    const int64_t heads = rotary.heads + 2 * cache.kv_heads;
    with_type(cache.type, [&](auto holds) {
      me.share(rotary.tokens * heads, [&](int64_t first, int64_t end) {
        for (int64_t t = first / heads; t * heads < end; ++t)
          rotate_token<decltype(holds)>(rotary, cache, t, std::max<int64_t>(first - t * heads, 0),
                                        std::min(end - t * heads, heads));
      });
    });
  };
}

}  // namespace qinfer
