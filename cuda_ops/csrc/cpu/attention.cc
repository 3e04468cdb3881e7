#include "attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace qinfer {
namespace {

constexpr int64_t kQueries = 8;  // queries of a sequence that one task handles

// Turn `count` scores into weights that add up to one, with zeros up to a whole vector.
void softmax(float* scores, int64_t count) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + count, scores + padded, -1e30f);
  F32 largest = load<F32>(scores);
  for (int64_t j = kLanes; j < padded; j += kLanes) largest = max(largest, load<F32>(scores + j));
  const float top = max(largest);
  F32 total = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    F32 weight = exp(load<F32>(scores + j) - top);
    if (j + kLanes > count) weight = load<F32>(scores + j) == -1e30f ? F32{} : weight;
    store(scores + j, weight);
    total += weight;
  }
  const float inverse = 1.0f / sum(total);
  for (int64_t j = 0; j < padded; j += kLanes) store(scores + j, load<F32>(scores + j) * inverse);
}

// Queries `first` to `first + count` of the batch, of query heads `head` to `head + heads`, which
// share one KV head.
struct Task {
  int64_t sequence, first, count, head, heads;
};

// Four sums over every fourth dimension, added in a fixed order.
inline F32 scores_of(const float* query, const float* keys, int64_t dim) {
  F32 part[4] = {};
  for (int64_t d = 0; d < dim; d += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) part[i] += load<F32>(keys + (d + i) * kLanes) * query[d + i];
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// to += the sum of `count` rows of values, weighted, over V vectors side by side.
template <int V>
void mix(const float* values, int64_t stride, const float* weights, int64_t count, float* to) {
  F32 total[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) total[v] = load<F32>(to + v * kLanes);
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      total[v] += load<F32>(values + i * stride + v * kLanes) * weights[i];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) store(to + v * kLanes, total[v]);
}

void attend(const Paged& p, const Task& task, const float* queries, float scale, float* out) {
  static thread_local std::vector<float> scratch;
  const int64_t kv_head = task.head / (p.heads / p.kv_heads);
  const int64_t behind = p.starts[task.sequence + 1] - task.first;   // this query to the last
  const int64_t first_seen = p.lengths[task.sequence] - behind + 1;  // keys the first query sees
  const int64_t seen = first_seen + task.count - 1, rows = task.count * task.heads;
  const int64_t padded = (seen + kLanes - 1) / kLanes * kLanes;
  if (static_cast<int64_t>(scratch.size()) < rows * padded) scratch.resize(rows * padded);
  const int32_t* table = p.tables + task.sequence * p.width;
  const auto slot = [&](int64_t at) {
    return table[at / p.block_size] * p.block_size + at % p.block_size;
  };
  const auto query = [&](int64_t row) {
    return ((task.first + row / task.heads) * p.heads + task.head + row % task.heads) * p.dim;
  };
  for (int64_t j = 0; j < seen; j += kLanes) {
    const float* keys = p.keys + (slot(j) * p.kv_heads + kv_head * kLanes) * p.dim;
    for (int64_t row = 0; row < rows; ++row)
      store(&scratch[row * padded + j], scores_of(queries + query(row), keys, p.dim) * scale);
  }
  for (int64_t row = 0; row < rows; ++row)
    softmax(&scratch[row * padded], first_seen + row / task.heads);
  for (int64_t row = 0; row < rows; ++row) std::fill_n(out + query(row), p.dim, 0.0f);
  for (int64_t j = 0; j < seen; j += kLanes) {
    const float* values = p.values + (slot(j) * p.kv_heads + kv_head) * p.dim;
    const int64_t count = std::min<int64_t>(kLanes, seen - j);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t visible = std::min(count, first_seen + row / task.heads - j);
      const float* weights = &scratch[row * padded + j];
      float* to = out + query(row);
      int64_t d = 0;
      for (; d + 4 * kLanes <= p.dim; d += 4 * kLanes)
        mix<4>(values + d, p.kv_heads * p.dim, weights, visible, to + d);
      for (; d < p.dim; d += kLanes)
        mix<1>(values + d, p.kv_heads * p.dim, weights, visible, to + d);
    }
  }
}

}  // namespace

void rotary_kv_write(const float* qkv, const float* rotary, const int64_t* positions,
                     const int64_t* slots, float* key_cache, float* value_cache, float* queries,
                     int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim) {
  const int64_t half = dim / 2, row = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for schedule(static) if (tokens > 8)
  for (int64_t t = 0; t < tokens; ++t) {
    const float *cos = rotary + positions[t] * 2 * dim, *sin = cos + dim;
    const int64_t group = slots[t] / kLanes * kLanes, lane = slots[t] % kLanes;
    for (int64_t h = 0; h < heads + kv_heads; ++h) {
      const float* from = qkv + t * row + h * dim;
      const bool is_key = h >= heads;
      float* to = is_key ? key_cache + (group * kv_heads + (h - heads) * kLanes) * dim + lane
                         : queries + (t * heads + h) * dim;
      const int64_t stride = is_key ? kLanes : 1;
      for (int64_t d = 0; d < half; ++d) {
        to[d * stride] = from[d] * cos[d] + from[d + half] * sin[d];
        to[(d + half) * stride] = from[d + half] * cos[d + half] + from[d] * sin[d + half];
      }
    }
    const float* values = qkv + t * row + (heads + kv_heads) * dim;
    std::copy_n(values, kv_heads * dim, value_cache + slots[t] * kv_heads * dim);
  }
}

void paged_attention(const Paged& p, const float* queries, float scale, float* out) {
  const int64_t group = p.heads / p.kv_heads, tokens = p.starts[p.sequences];
  // Heads that share keys go together, unless that leaves too few tasks to share out.
  const int64_t together = tokens * p.kv_heads >= 16 ? group : 1;
  std::vector<Task> tasks;
  for (int64_t s = 0; s < p.sequences; ++s)
    for (int64_t t = p.starts[s]; t < p.starts[s + 1]; t += kQueries)
      for (int64_t h = 0; h < p.heads; h += together)
        tasks.push_back({s, t, std::min<int64_t>(kQueries, p.starts[s + 1] - t), h, together});
  take_turns(tasks.size(), [&](int64_t i) { attend(p, tasks[i], queries, scale, out); });
}

void silu_gate(const float* x, float* y, int64_t rows, int64_t width) {
  const int64_t vectors = width / kLanes;
#pragma omp parallel for schedule(static) collapse(2) if (rows > 4)
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t v = 0; v < vectors; ++v) {
      const float* gate = x + r * 2 * width + v * kLanes;
      const F32 g = load<F32>(gate);
      store(y + r * width + v * kLanes, g / (1.0f + exp(-g)) * load<F32>(gate + width));
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = vectors * kLanes; i < width; ++i) {
      const float g = x[r * 2 * width + i];
      y[r * width + i] = g / (1.0f + std::exp(-g)) * x[r * 2 * width + width + i];
    }
}

}  // namespace qinfer
