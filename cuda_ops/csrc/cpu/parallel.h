// Sharing work out among threads.
//
// Of OpenMP only "parallel" and static loops are used. Their threads come from the OpenMP library
// Paddle ships (so that both use the same ones), through the entry points it offers to code that
// GCC compiled; its dynamic loops, reached that way, return before the work is done.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>

namespace qinfer {

// work(first, end) on each thread, over even shares of 0 to count.
template <typename Work>
void share_evenly(int64_t count, const Work& work) {
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    work(count * me / threads, count * (me + 1) / threads);
  }
}

// work(i) for 0 to count, each taken by the next thread that is free.
template <typename Work>
void take_turns(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
#pragma omp parallel
  for (int64_t i = next++; i < count; i = next++) work(i);
}

}  // namespace qinfer
