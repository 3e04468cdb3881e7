#include "record.h"

#include <functional>

namespace qinfer {
namespace {

thread_local Recording* current = nullptr;

constexpr size_t kAlign = 64;

}  // namespace

void* Arena::take(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& free = free_[bytes];
  if (!free.empty()) {
    void* memory = free.back();
    free.pop_back();
    return memory;
  }
  size_t room = bytes + kAlign;
  blocks_.emplace_back(std::unique_ptr<char[]>(new char[room]), room);
  void* memory = blocks_.back().first.get();
  return std::align(kAlign, bytes, memory, room);
}

void Arena::give_back(void* memory, size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_[bytes].push_back(memory);
}

bool Arena::owns(const void* address) const {
  const std::less_equal<const char*> not_after;
  const char* at = static_cast<const char*>(address);
  for (const auto& [start, size] : blocks_)
    if (not_after(start.get(), at) && !not_after(start.get() + size, at)) return true;
  return false;
}

Recording* recording() { return current; }

void submit(Task task, bool by_a_team) {
  if (current && current->is_deferred) {
    // its turn comes
  } else if (by_a_team) {
    run_together(task);
  } else {
    [[maybe_unused]] const KeepSmallNumbers keep;
    task(Worker{0, 1, nullptr});
  }
  if (current) current->tasks.push_back(std::move(task));
}

}  // namespace qinfer

// For Python, which loads the library with ctypes besides registering the operators.
extern "C" {

void* qinfer_record(bool is_deferred) {
  qinfer::current = new qinfer::Recording;
  qinfer::current->is_deferred = is_deferred;
  return qinfer::current;
}

void qinfer_record_end() { qinfer::current = nullptr; }

// Run the tasks from `first` to `end`. seconds: null, or [tasks]: what each took until every thread
// had done its share of it.
void qinfer_replay(const void* recording, int64_t first, int64_t end, double* seconds) {
  const auto* recorded = static_cast<const qinfer::Recording*>(recording);
  qinfer::run_together([&](const qinfer::Worker& me) {
    double before = seconds ? omp_get_wtime() : 0;
    for (int64_t i = first; i < end; ++i) {
      recorded->tasks[i](me);
      me.wait();
      if (!seconds || me.index > 0) continue;
      const double now = omp_get_wtime();
      seconds[i] = now - before;
      before = now;
    }
  });
}

void qinfer_recording_free(void* recording) { delete static_cast<qinfer::Recording*>(recording); }

int64_t qinfer_recording_size(const void* recording) {
  return static_cast<const qinfer::Recording*>(recording)->tasks.size();
}
}
