// Memory of the cards, from a pool of each, and pinned memory of the computer.
#include <algorithm>
#include <array>
#include <cstdlib>

#include "device.h"

namespace qinfer {
namespace {

// Each block an allocation of its own and of just its size, so that compute-sanitizer knows where
// it ends. Nothing that is recorded is allocated here.
bool is_exact() {
  static const bool is = std::getenv("QINFER_EXACT_MEMORY") != nullptr;
  return is;
}

C_Status allocate(const C_Device device, void** block, size_t bytes) {
  use(device);
  cudaError_t why = cudaSuccess;
  if (is_exact())
    why = cudaMalloc(block, std::max<size_t>(bytes, 1));
  else
    *block = pool(device->id).allocate(bytes, &why);
  // Not thrown: Paddle calls this where nothing may be thrown.
  if (why != cudaSuccess) return C_FAILED;
  return C_SUCCESS;
}

C_Status deallocate(const C_Device device, void* block, size_t) {
  if (is_exact()) return status(cudaFree(block));
  pool(device->id).free(block);
  return C_SUCCESS;
}

C_Status allocate_host(const C_Device, void** block, size_t bytes) {
  check(cudaMallocHost(block, bytes), "allocating pinned memory");
  return C_SUCCESS;
}

C_Status deallocate_host(const C_Device, void* block, size_t) {
  return status(cudaFreeHost(block));
}

C_Status fill(const C_Device device, void* block, unsigned char value, size_t bytes) {
  use(device);
  check(cudaMemset(block, value, bytes), "filling memory");
  return C_SUCCESS;
}

C_Status memory(const C_Device device, size_t* total, size_t* free) {
  use(device);
  check(cudaMemGetInfo(free, total), "asking for free memory");
  *free += pool(device->id).usage().kept;
  return C_SUCCESS;
}

C_Status min_chunk(const C_Device, size_t* bytes) {
  *bytes = is_exact() ? 16 : 512;
  return C_SUCCESS;
}

}  // namespace

// Never destroyed: Paddle frees memory while the process ends.
Pool& pool(int device) {
  static auto* pools = new std::array<Pool, kMostDevices>;
  return pools->at(device);
}

void add_memory(C_DeviceInterface* table) {
  table->device_memory_allocate = allocate;
  table->device_memory_deallocate = deallocate;
  table->device_memory_set = fill;
  table->host_memory_allocate = allocate_host;
  table->host_memory_deallocate = deallocate_host;
  table->device_memory_stats = memory;
  table->device_min_chunk_size = min_chunk;
}

}  // namespace qinfer
