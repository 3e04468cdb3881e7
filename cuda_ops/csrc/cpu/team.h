// Threads that run operators together.
//
// An operator is a Task: every thread of a team calls it, does its share, and may wait for the
// others in between. Alone a task gets a parallel region of its own; a recorded step (record.h)
// runs all of its tasks in a single one, with a wait of a fraction of a microsecond between them.
//
// Of OpenMP only "parallel" and static loops are used. Their threads come from the OpenMP library
// Paddle ships (so that both use the same ones), through the entry points it offers to code that
// GCC compiled; its dynamic loops, reached that way, return before the work is done.
#pragma once

#include <omp.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

namespace qinfer {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the threads of a team wait until all have come, and where they take numbers between two
// waits. It counts arrivals and never starts again, so nobody has to clear it while others still
// look; whole teams of arrivals say how many waits are over.
class Barrier {
 public:
  void wait(int64_t threads) {
    // Nobody takes a number of what follows before all are here.
    std::atomic<int64_t>& next = taken_[(waits(threads) + 1) % 2];
    if (next.load(std::memory_order_relaxed)) next.store(0, std::memory_order_relaxed);
    const int64_t mine = arrivals_.fetch_add(1, std::memory_order_acq_rel);
    const int64_t all = (mine / threads + 1) * threads;
    // Spinning is what makes it fast; on a machine that is busy with other things the thread that
    // is waited for may need this processor.
    for (int spins = 0; arrivals_.load(std::memory_order_acquire) < all; ++spins)
      if (spins > 4000) std::this_thread::yield();
  }

  // 0, 1, 2 and so on, each for one thread, from the wait before on.
  int64_t take(int64_t threads) {
    return taken_[waits(threads) % 2].fetch_add(1, std::memory_order_relaxed);
  }

 private:
  int64_t waits(int64_t threads) const {
    return arrivals_.load(std::memory_order_relaxed) / threads;
  }

  alignas(64) std::atomic<int64_t> arrivals_{0};
  alignas(64) std::atomic<int64_t> taken_[2]{};
};

// One thread of a team, as a task sees it.
struct Worker {
  int64_t index, count;
  Barrier* barrier;

  void wait() const {
    if (count > 1) barrier->wait(count);
  }

  // work(first, end): this thread's even share of 0 to n.
  template <typename Work>
  void share(int64_t n, const Work& work) const {
    const int64_t first = n * index / count, end = n * (index + 1) / count;
    if (first < end) work(first, end);
  }

  // The same where threads get on at different speeds: an eighth or a little more goes in pieces to
  // whoever comes first, the rest in whole pieces evenly. Once between two waits at the most.
  template <typename Work>
  void compete(int64_t n, int64_t piece, const Work& work) const {
    if (count == 1) return share(n, work);
    const int64_t even = (n - n / 8) / (piece * count) * (piece * count);
    share(even, work);
    for (int64_t at; (at = even + piece * barrier->take(count)) < n;)
      work(at, at + piece < n ? at + piece : n);
  }
};

// While it lives, this thread computes with numbers below 1e-38, as it does elsewhere: Paddle's
// executor of static programs takes them for zero, by two bits of the processor's control register.
class KeepSmallNumbers {
#if defined(__SSE__)
 public:
  KeepSmallNumbers() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~0x8040u); }
  ~KeepSmallNumbers() { _mm_setcsr(before_); }
  KeepSmallNumbers(const KeepSmallNumbers&) = delete;
  KeepSmallNumbers& operator=(const KeepSmallNumbers&) = delete;

 private:
  unsigned before_;
#endif
};

using Task = std::function<void(const Worker&)>;

// Call work(worker) on every thread.
template <typename Work>
void run_together(const Work& work) {
  Barrier barrier;
#pragma omp parallel
  {
    [[maybe_unused]] const KeepSmallNumbers keep;
    work(Worker{omp_get_thread_num(), omp_get_num_threads(), &barrier});
  }
}

// Memory for what a task computes on the way, not cleared. It lives as long as the task.
template <typename T>
std::shared_ptr<T[]> scratch(int64_t count) {
  return std::shared_ptr<T[]>(new T[count]);
}

}  // namespace qinfer
