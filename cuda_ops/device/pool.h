// Device memory that is kept for the next request instead of being given back to the driver, whose
// own calls wait for everything the card is doing and are not allowed while a step is recorded.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <unordered_map>

namespace qinfer {

struct Usage {
  size_t used = 0, peak = 0, kept = 0;  // bytes handed out, the most there were, free ones kept
};

// Blocks of one device. A block is handed out again at once, so all work on it must be queued on
// one stream. Thread-safe.
class Pool {
 public:
  // Null, with the driver's error in `why`, when there is not enough memory.
  void* allocate(size_t bytes, cudaError_t* why) {
    const size_t size = rounded(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = free_.lower_bound(size);
    if (found != free_.end() && found->first <= 2 * size) {
      void* block = found->second;
      usage_.kept -= found->first;
      take(block, found->first);
      free_.erase(found);
      return block;
    }
    void* block = nullptr;
    *why = cudaMalloc(&block, size);
    if (*why == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      release_kept();
      *why = cudaMalloc(&block, size);
    }
    if (*why != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    take(block, size);
    return block;
  }

  void free(void* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(block);
    if (found == sizes_.end()) return;
    usage_.used -= found->second;
    usage_.kept += found->second;
    free_.emplace(found->second, block);
    sizes_.erase(found);
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release_kept();
  }

  Usage usage() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return usage_;
  }

 private:
  static size_t rounded(size_t bytes) {
    const size_t unit = bytes < (1 << 20) ? 512 : 2 << 20;
    return bytes ? (bytes + unit - 1) / unit * unit : unit;
  }

  void take(void* block, size_t size) {
    sizes_.emplace(block, size);
    usage_.used += size;
    if (usage_.used > usage_.peak) usage_.peak = usage_.used;
  }

  void release_kept() {
    for (const auto& [size, block] : free_) cudaFree(block);
    free_.clear();
    usage_.kept = 0;
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  std::unordered_map<void*, size_t> sizes_;
  Usage usage_;
};

}  // namespace qinfer
