// A step's operators, recorded while they run once and run again in one call.
//
// What a CUDA graph is to a GPU: the tasks keep the addresses they worked on, so a replay computes
// the same step on what those places hold by then. While recording, results come from an arena of
// the recording's own, where memory given back is taken again, as it will be in every replay.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "team.h"

namespace qinfer {

// Memory that is kept until the arena dies: tensors made while recording may outlive it.
class Arena {
 public:
  void* take(size_t bytes);
  void give_back(void* memory, size_t bytes);
  bool owns(const void* address) const;

 private:
  std::mutex mutex_;  // tensors are dropped by any thread
  std::map<size_t, std::vector<void*>> free_;
  std::vector<std::pair<std::unique_ptr<char[]>, size_t>> blocks_;
};

struct Recording {
  bool is_deferred = false;  // tasks are noted and not run: a replay will be their first run
  std::vector<Task> tasks;
  std::vector<std::shared_ptr<void>> held;  // what tasks read that came from outside
  std::shared_ptr<Arena> arena = std::make_shared<Arena>();
};

// The recording this thread is making, or null.
Recording* recording();

// Run a task now, alone or by a team, and note it if this thread is recording; where that is
// deferred note it only.
void submit(Task task, bool by_a_team = true);

}  // namespace qinfer
