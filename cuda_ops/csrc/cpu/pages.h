// Huge pages for weights: a decoding step reads all of them once, and with pages of 4 KiB the
// processor looks up a quarter of a million addresses on the way.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>

namespace qinfer {

// Ask the kernel to put memory that has been written on huge pages, with what lies before it on the
// first of them. What cannot be stays as it is.
inline void prefer_huge_pages(const void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, of Linux 6.1
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHuge * kHuge;
  if (start >= end) return;
  madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
  madvise(reinterpret_cast<void*>(start), end - start, kCollapse);
#endif
}

}  // namespace qinfer
