#include "attention.h"

#include <algorithm>
#include <vector>

namespace qinfer {
namespace {

constexpr float kHidden = -1e30f;                 // the score of a key that a query does not see
constexpr int64_t kQueries = 8;                   // queries of a sequence that one job handles
constexpr int kHeads = kRegisters == 32 ? 4 : 3;  // heads whose sums the registers hold at a time

// Turn the scores `first` to `count` into weights that add up to one, with zeros up to whole
// vectors on either side.
void softmax(float* scores, int64_t first, int64_t count) {
  const int64_t before = first / kLanes * kLanes;
  scores += before, first -= before, count -= before;
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(scores, scores + first, kHidden);
  std::fill(scores + count, scores + padded, kHidden);
  F32 largest = load<F32>(scores);
  for (int64_t j = kLanes; j < padded; j += kLanes) largest = max(largest, load<F32>(scores + j));
  const float top = max(largest);
  F32 total = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    F32 weight = exp(load<F32>(scores + j) - top);
    if (j == 0 || j + kLanes > count) weight = load<F32>(scores + j) == kHidden ? F32{} : weight;
    store(scores + j, weight);
    total += weight;
  }
  const float inverse = 1.0f / sum(total);
  for (int64_t j = 0; j < padded; j += kLanes) store(scores + j, load<F32>(scores + j) * inverse);
}

// Scores of R queries against sixteen keys: four sums over every fourth dimension, added in a
// fixed order.
template <typename Holds, int R>
void score(const float* query, const typename Holds::Item* keys, int64_t dim, F32 scale, float* to,
           int64_t row) {
  F32 part[R][4] = {};
  for (int64_t d = 0; d < dim; d += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const F32 key = Holds::read(keys + (d + i) * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        part[r][i] = add_product(part[r][i], key, splat(query[r * dim + d + i]));
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    store(to + r * row, ((part[r][0] + part[r][1]) + (part[r][2] + part[r][3])) * scale);
}

// to += `count` rows of values, weighted, for R queries and V vectors of sixteen dimensions.
template <typename Holds, int R, int V>
void mix(const typename Holds::Item* values, int64_t stride, const float* weights, int64_t row,
         int64_t count, float* to, int64_t dim) {
  F32 total[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total[r][v] = load<F32>(to + r * dim + v * kLanes);
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const F32 value = Holds::read(values + i * stride + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        total[r][v] = add_product(total[r][v], value, splat(weights[r * row + i]));
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(to + r * dim + v * kLanes, total[r][v]);
}

// Queries `first` to `first + count` of the batch, of query heads `head` to `head + heads`, which
// share one KV head.
struct Job {
  int64_t sequence, first, count, head, heads;
};

template <typename Holds>
class Attention {
 public:
  Attention(const Paged& paged, const Cache& cache, const Job& job)
      : p_(paged), cache_(cache), job_(job) {
    kv_head_ = job.head / (p_.heads / cache.kv_heads);
    const int64_t behind = p_.starts[job.sequence + 1] - job.first;  // this query to the last
    first_seen_ = p_.lengths[job.sequence] - behind + 1;             // keys the first query sees
    seen_ = first_seen_ + job.count - 1;
    padded_ = (seen_ + kLanes - 1) / kLanes * kLanes;
  }

  void run() {
    static thread_local std::vector<float> memory;
    const int64_t rows = job_.count * job_.heads;
    if (static_cast<int64_t>(memory.size()) < rows * padded_) memory.resize(rows * padded_);
    scores_ = memory.data();
    const int64_t start = first_of(0) / kLanes * kLanes;  // the first query's, the earliest
    for (int64_t j = start; j < seen_; j += kLanes) {
      ask(j);
      together<Score>(j);
    }
    for (int64_t t = 0; t < job_.count; ++t)
      for (int64_t h = 0; h < job_.heads; ++h) {
        softmax(row(t, h), first_of(t), first_seen_ + t);
        std::fill_n(p_.out + query(t, h), cache_.dim, 0.0f);
      }
    for (int64_t j = start; j < seen_; j += kLanes) together<Mix>(j);
  }

 private:
  using Item = typename Holds::Item;
  static constexpr int64_t kLine = 64 / sizeof(Item);  // numbers in a line of the cache

  // Ask for the keys that come next and the values of these: short pieces all over memory, which
  // the processor's own prefetching does not foresee.
  void ask(int64_t j) const {
    if (j + kLanes < seen_) {
      const Item* keys = keys_at(slot_of(j + kLanes));
      for (int64_t i = 0; i < kLanes * cache_.dim; i += kLine) ask_for(keys + i);
    }
    const Item* values = values_at(slot_of(j));
    for (int64_t t = 0; t < kLanes; ++t)
      for (int64_t i = 0; i < cache_.dim; i += kLine)
        ask_for(values + t * cache_.kv_heads * cache_.dim + i);
  }

  // Step<R>::run for all heads of every query, kHeads at a time.
  template <template <int> class Step>
  void together(int64_t j) {
    const int64_t slot = slot_of(j);
    for (int64_t t = 0; t < job_.count; ++t) {
      int64_t h = 0;
      for (; h + kHeads <= job_.heads; h += kHeads) Step<kHeads>::run(*this, t, h, j, slot);
      const int64_t left = job_.heads - h;
      if (left == 3) Step<3>::run(*this, t, h, j, slot);  // of four
      if (left == 2) Step<2>::run(*this, t, h, j, slot);
      if (left == 1) Step<1>::run(*this, t, h, j, slot);
    }
  }

  template <int R>
  struct Score {
    static void run(Attention& a, int64_t t, int64_t h, int64_t j, int64_t slot) {
      const Cache& c = a.cache_;
      const Item* keys = a.keys_at(slot);
      const F32 scale = a.scales(c.key_scales, slot) * a.p_.scale;
      score<Holds, R>(a.p_.queries + a.query(t, h), keys, c.dim, scale, a.row(t, h) + j, a.padded_);
    }
  };

  template <int R>
  struct Mix {
    static void run(Attention& a, int64_t t, int64_t h, int64_t j, int64_t slot) {
      const Cache& c = a.cache_;
      const int64_t from = std::max<int64_t>(a.first_of(t) - j, 0);
      const int64_t count = std::min<int64_t>(kLanes, a.first_seen_ + t - j) - from;
      if (count <= 0) return;
      float* weights = a.row(t, h) + j;
      if constexpr (Holds::kMost > 0)
        for (int r = 0; r < R; ++r)
          store(weights + r * a.padded_,
                load<F32>(weights + r * a.padded_) * a.scales(c.value_scales, slot));
      weights += from;
      const Item* values = a.values_at(slot + from);
      const int64_t stride = c.kv_heads * c.dim;
      float* to = a.p_.out + a.query(t, h);
      int64_t d = 0;
      for (; d + 4 * kLanes <= c.dim; d += 4 * kLanes)
        mix<Holds, R, 4>(values + d, stride, weights, a.padded_, count, to + d, c.dim);
      for (; d < c.dim; d += kLanes)
        mix<Holds, R, 1>(values + d, stride, weights, a.padded_, count, to + d, c.dim);
    }
  };

  const Item* keys_at(int64_t slot) const {
    return static_cast<const Item*>(cache_.keys) + cache_.group(slot, kv_head_) * cache_.dim;
  }

  const Item* values_at(int64_t slot) const {
    return static_cast<const Item*>(cache_.values) +
           (slot * cache_.kv_heads + kv_head_) * cache_.dim;
  }

  int64_t slot_of(int64_t at) const {
    const int32_t block = p_.tables[job_.sequence * p_.width + at / cache_.block_size];
    return int64_t{block} * cache_.block_size + at % cache_.block_size;
  }

  int64_t first_of(int64_t t) const {  // the first key that query t sees
    return p_.window ? std::max<int64_t>(first_seen_ + t - p_.window, 0) : 0;
  }

  int64_t query(int64_t t, int64_t h) const {
    return ((job_.first + t) * p_.heads + job_.head + h) * cache_.dim;
  }

  float* row(int64_t t, int64_t h) const { return scores_ + (t * job_.heads + h) * padded_; }

  // Of the sixteen slots from `slot`, whose unwritten ones may hold anything.
  F32 scales(const float* scales, int64_t slot) const {
    if constexpr (Holds::kMost == 0) return splat(1);
    if (cache_.is_static) return splat(scales[kv_head_]);
    return load<F32>(scales + cache_.group(slot, kv_head_));
  }

  const Paged& p_;
  const Cache& cache_;
  const Job& job_;
  int64_t kv_head_, first_seen_, seen_, padded_;
  float* scores_ = nullptr;
};

// work(job, cost) for all there is to do, head by head.
template <typename Work>
void each_job(const Paged& p, const Work& work) {
  for (int64_t s = 0; s < p.sequences; ++s)
    for (int64_t t = p.starts[s]; t < p.starts[s + 1]; t += kQueries) {
      const int64_t count = std::min<int64_t>(kQueries, p.starts[s + 1] - t);
      const int64_t seen = p.lengths[s] - (p.starts[s + 1] - t) + count;
      for (int64_t h = 0; h < p.heads; ++h) work(Job{s, t, count, h, 1}, seen * count);
    }
}

}  // namespace

Task paged_attention(const Paged& p, const Cache& cache) {
  return [=](const Worker& me) {
    const int64_t group = p.heads / cache.kv_heads;
    int64_t total = 0, before = 0;
    each_job(p, [&](const Job&, int64_t cost) { total += cost; });
    with_type(cache.type, [&](auto holds) {
      Job mine{};  // this thread's heads that share keys go together
      const auto run = [&] {
        if (mine.heads) Attention<decltype(holds)>(p, cache, mine).run();
      };
      each_job(p, [&](const Job& job, int64_t cost) {
        const bool is_mine = (before + cost / 2) * me.count / total == me.index;
        before += cost;
        if (!is_mine) return;
        if (mine.heads && job.head % group) {
          ++mine.heads;
          return;
        }
        run();
        mine = job;
      });
      run();
    });
  };
}

}  // namespace qinfer
