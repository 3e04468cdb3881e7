// Going over a result in tiles of R rows and P panels.
#pragma once

#include "panels.h"

namespace qinfer {

// Call Tile<R, P>::run for the tiles of P panels from p on; where the rest begins.
template <template <int, int> class Tile, int R, int P, typename X>
int64_t tiles_of(const Job& job, const X& x, int64_t row, int64_t p, int64_t end) {
  return each_tile<P>(job, p, end,
                      [&](const Places& places) { Tile<R, P>::run(job, x, row, places); });
}

// Call Tile<rows at once, panels at once> over R rows and the panels p to end. Tile<R, 4>::kPanels
// is 4 if the registers hold that many panels for R rows.
template <template <int, int> class Tile, int R, typename X>
void panels_of(const Job& job, const X& x, int64_t row, int64_t p, int64_t end) {
  if constexpr (R == 1 && kRegisters == 32) p = tiles_of<Tile, R, 8>(job, x, row, p, end);
  if constexpr (R <= 2 || Tile<R, 4>::kPanels == 4) p = tiles_of<Tile, R, 4>(job, x, row, p, end);
  p = tiles_of<Tile, R, 2>(job, x, row, p, end);
  tiles_of<Tile, R, 1>(job, x, row, p, end);
}

// All rows of the panels p to end.
template <template <int, int> class Tile, int kMost, typename X>
void rows_of(const Job& job, const X& x, int64_t p, int64_t end) {
  int64_t row = 0;
  for (; row + kMost <= job.rows; row += kMost) panels_of<Tile, kMost>(job, x, row, p, end);
  for (; row + 2 <= job.rows; row += 2) panels_of<Tile, 2>(job, x, row, p, end);
  for (; row < job.rows; ++row) panels_of<Tile, 1>(job, x, row, p, end);
}

// The panels are split among the threads; many rows pass over a few panels at a time, which stay in
// the cache meanwhile.
template <template <int, int> class Tile, int kMost, typename X>
void over_tiles(const Job& job, const X& x, const Worker& me) {
  if (job.rows < kManyRows)
    return share_panels(job, me,
                        [&](int64_t p, int64_t end) { rows_of<Tile, kMost>(job, x, p, end); });
  me.share(divide_up(job.out, kLanes), [&](int64_t first, int64_t end) {
    for (int64_t p = first; p < end; p += kGroup)
      rows_of<Tile, kMost>(job, x, p, std::min(p + kGroup, end));
  });
}

}  // namespace qinfer
