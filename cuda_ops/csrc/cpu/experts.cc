#include "experts.h"

#include <cmath>

#include "panels.h"

namespace qinfer {
namespace {

void route_row(const float* logits, float* weights, int32_t* experts, int64_t count, int64_t top_k,
               bool normalise, float* probability) {
  const float largest = *std::max_element(logits, logits + count);
  float total = 0;
  for (int64_t e = 0; e < count; ++e) {
    probability[e] = std::exp(logits[e] - largest);
    total += probability[e];
  }
  for (int64_t e = 0; e < count; ++e) probability[e] /= total;
  float chosen = 0;
  for (int64_t j = 0; j < top_k; ++j) {
    const float* best = std::max_element(probability, probability + count);
    experts[j] = static_cast<int32_t>(best - probability);
    weights[j] = *best;
    chosen += *best;
    probability[experts[j]] = -1;
  }
  if (normalise)
    for (int64_t j = 0; j < top_k; ++j) weights[j] /= chosen;
}

void mix_row(const float* routed, const float* weights, const float* shared, float gate, float* y,
             int64_t top_k, int64_t width, int64_t first, int64_t end) {
  int64_t k = first;
  for (; k + kLanes <= end; k += kLanes) {
    F32 total = {};
    for (int64_t j = 0; j < top_k; ++j) total += load<F32>(routed + j * width + k) * weights[j];
    if (shared) total += load<F32>(shared + k) * gate;
    store(y + k, total);
  }
  for (; k < end; ++k) {
    float total = 0;
    for (int64_t j = 0; j < top_k; ++j) total += routed[j * width + k] * weights[j];
    y[k] = shared ? total + shared[k] * gate : total;
  }
}

}  // namespace

void Order::sort() {
  std::fill_n(starts.get(), count + 1, 0);
  for (int64_t i = 0; i < pairs; ++i) ++starts[experts[i] + 1];
  for (int64_t e = 0; e < count; ++e) starts[e + 1] += starts[e];
  // Each expert's start runs on to its end as its pairs come, which is the next one's start.
  for (int64_t i = 0; i < pairs; ++i) pair[starts[experts[i]]++] = i;
  std::copy_backward(starts.get(), starts.get() + count, starts.get() + count + 1);
  starts[0] = 0;
}

Task route(const float* logits, float* weights, int32_t* experts, int64_t tokens, int64_t count,
           int64_t top_k, bool normalise) {
  auto probabilities = scratch<float>(tokens * count);
  return [=](const Worker& me) {
    me.share(tokens, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t)
        route_row(logits + t * count, weights + t * top_k, experts + t * top_k, count, top_k,
                  normalise, probabilities.get() + t * count);
    });
  };
}

Task mix_experts(const float* routed, const float* weights, const float* shared, const float* gate,
                 float* y, int64_t tokens, int64_t top_k, int64_t width) {
  constexpr int64_t kPart = 16 * kLanes;
  const int64_t parts = divide_up(width, kPart);
  return [=](const Worker& me) {
    me.share(tokens * parts, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        const int64_t t = i / parts, from = i % parts * kPart;
        const float open = shared ? 1.0f / (1.0f + std::exp(-gate[t])) : 0.0f;
        mix_row(routed + t * top_k * width, weights + t * top_k,
                shared ? shared + t * width : nullptr, open, y + t * width, top_k, width, from,
                std::min(from + kPart, width));
      }
    });
  };
}

}  // namespace qinfer
