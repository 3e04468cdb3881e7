#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"

namespace qinfer {
namespace {

struct Candidate {
  float score;
  int64_t token;
};

bool comes_before(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

// The likeliest tokens of a row in order, as many as it takes. Few tokens have nearly all of the
// probability, so only those within some distance of the best are sorted, and more if need be.
class Ranking {
 public:
  Ranking(const float* logits, int64_t width, float temperature) : scores_(width) {
    best_ = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < width; ++i) {
      scores_[i] = logits[i] / temperature;
      best_ = std::max(best_, scores_[i]);
    }
  }

  // Of everything together, relative to the best token's, added in a fixed order.
  double total() const {
    const int64_t width = scores_.size(), whole = width / kLanes * kLanes;
    double sum_of_all = 0;
    for (int64_t i = 0; i < whole; i += kLanes) {
      const F32 part = exp(load<F32>(&scores_[i]) - best_);
      sum_of_all += sum(load<F32>(&scores_[i]) - best_ < -80.0f ? F32{} : part);
    }
    for (int64_t i = whole; i < width; ++i) sum_of_all += weight(scores_[i]);
    return sum_of_all;
  }

  // Make sure that the first `count` are ranked. False if there are not as many.
  bool reach(int64_t count) {
    while (static_cast<int64_t>(ranked_.size()) < count) {
      if (ranked_.size() == scores_.size()) return false;
      widen();
    }
    return true;
  }

  const Candidate& operator[](int64_t i) const { return ranked_[i]; }

  // Relative to the best token's; nothing for one that is forbidden.
  double weight(float score) const { return std::exp(static_cast<double>(score) - best_); }

 private:
  void widen() {
    distance_ *= 2;
    const float least = best_ - distance_;
    const bool is_all = distance_ > 100;  // e^-100 is nothing
    ranked_.clear();
    for (int64_t i = 0; i < static_cast<int64_t>(scores_.size()); ++i)
      if (is_all || scores_[i] >= least) ranked_.push_back({scores_[i], i});
    std::sort(ranked_.begin(), ranked_.end(), comes_before);
  }

  std::vector<float> scores_;
  std::vector<Candidate> ranked_;
  float best_, distance_ = 2;
};

struct Limits {
  int64_t top_k;
  float top_p, min_p, uniform;
};

// The tokens that are kept are the first of the ranking, as each limit cuts off its end.
int64_t draw_one(Ranking& ranking, const Limits& limits) {
  const bool has_k = limits.top_k > 0;
  double total = 0;
  if (has_k)
    for (int64_t i = 0; i < limits.top_k && ranking.reach(i + 1); ++i)
      total += ranking.weight(ranking[i].score);
  else
    total = ranking.total();

  const bool is_cut = limits.top_p < 1 || limits.min_p > 0;
  double kept = 0;
  int64_t count = 0;
  for (; is_cut && (!has_k || count < limits.top_k) && ranking.reach(count + 1); ++count) {
    const double weight = ranking.weight(ranking[count].score);
    if (count > 0 && (kept >= limits.top_p * total || weight < limits.min_p || weight == 0)) break;
    kept += weight;
  }
  const double target = limits.uniform * (is_cut ? kept : total);
  double so_far = 0;
  int64_t last = 0;
  for (int64_t i = 0; (!is_cut || i < count) && (!has_k || i < limits.top_k); ++i) {
    if (!ranking.reach(i + 1)) break;
    const double weight = ranking.weight(ranking[i].score);
    if (i > 0 && weight == 0) break;
    last = i;
    so_far += weight;
    if (so_far > target) break;
  }
  return ranking[last].token;
}

}  // namespace

Task sample(const Draw& draw) {
  return [=](const Worker& me) {
    me.share(draw.rows, [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; ++r) {
        const float* row = draw.logits + r * draw.width;
        if (draw.temperature[r] == 0) {
          draw.chosen[r] = std::max_element(row, row + draw.width) - row;
          continue;
        }
        Ranking ranking(row, draw.width, draw.temperature[r]);
        ranking.reach(1);
        draw.chosen[r] =
            draw_one(ranking, {draw.top_k[r], draw.top_p[r], draw.min_p[r], draw.uniform[r]});
      }
    });
  };
}

}  // namespace qinfer
