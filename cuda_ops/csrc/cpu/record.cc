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
  if (by_a_team) {
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

void* qinfer_record() { return qinfer::current = new qinfer::Recording; }

void qinfer_record_end() { qinfer::current = nullptr; }

void qinfer_replay(const void* recording) {
  const auto* recorded = static_cast<const qinfer::Recording*>(recording);
  qinfer::run_together([&](const qinfer::Worker& me) {
    for (const qinfer::Task& task : recorded->tasks) {
      task(me);
      me.wait();
    }
  });
}

void qinfer_recording_free(void* recording) { delete static_cast<qinfer::Recording*>(recording); }

int64_t qinfer_recording_size(const void* recording) {
  return static_cast<const qinfer::Recording*>(recording)->tasks.size();
}
}
