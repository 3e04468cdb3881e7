// Choosing a token of each row at random.
#pragma once

#include "team.h"

namespace qinfer {

// Of each row: limits, and the random number in [0, 1) that picks the token. top_k 0, top_p 1 and
// min_p 0 are off.
struct Draw {
  const float* logits;  // [rows, width]
  const float *temperature, *top_p, *min_p, *uniform;
  const int64_t* top_k;
  int64_t* chosen;  // [rows], written
  int64_t rows, width;
};

Task sample(const Draw& draw);

}  // namespace qinfer
