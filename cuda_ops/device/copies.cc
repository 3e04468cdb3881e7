// Copies between the computer and the cards.
#include <atomic>

#include "device.h"

namespace qinfer {
namespace {

// Makes the computer's memory one that the card reads by itself while this lives: a copy of 256 MB
// takes 20 ms then instead of 45. Where that is not possible, such as for pages that are pinned
// already, the driver copies through pages of its own.
class Pinned {
 public:
  Pinned(const void* from, size_t bytes) : from_(const_cast<void*>(from)) {
    cudaPointerAttributes found = {};
    if (bytes < kWorthIt || cudaPointerGetAttributes(&found, from) != cudaSuccess) return;
    is_pinned_ = found.type == cudaMemoryTypeUnregistered &&
                 cudaHostRegister(from_, bytes, cudaHostRegisterReadOnly) == cudaSuccess;
  }
  ~Pinned() {
    if (is_pinned_) cudaHostUnregister(from_);
    cudaGetLastError();  // that it was not possible is no error of what comes next
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  static constexpr size_t kWorthIt = 4 << 20;
  void* from_;
  bool is_pinned_ = false;
};

// Copies without a stream come after all that has been queued, as the streams of streams.cc do not
// wait for the default one.
C_Status copy(const C_Device device, void* to, const void* from, size_t bytes) {
  use(device);
  check(cudaDeviceSynchronize(), "work on the device");
  const Pinned pinned(from, bytes);
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "a copy");
  check(cudaDeviceSynchronize(), "a copy");
  return C_SUCCESS;
}

// Copies to the computer, for tests: an operator that Paddle leaves to the processor makes some.
std::atomic<size_t> to_host{0};

C_Status copy_to_host(const C_Device device, void* to, const void* from, size_t bytes) {
  ++to_host;
  return copy(device, to, from, bytes);
}

C_Status copy_async(const C_Device device, C_Stream stream, void* to, const void* from,
                    size_t bytes) {
  use(device);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, of(stream)), "a copy");
  return C_SUCCESS;
}

C_Status copy_to_host_async(const C_Device device, C_Stream stream, void* to, const void* from,
                            size_t bytes) {
  ++to_host;
  return copy_async(device, stream, to, from, bytes);
}

C_Status copy_between(const C_Device to_device, const C_Device from_device, void* to,
                      const void* from, size_t bytes) {
  use(from_device);
  check(cudaDeviceSynchronize(), "work on the device");
  check(cudaMemcpyPeer(to, to_device->id, from, from_device->id, bytes), "a copy between devices");
  return C_SUCCESS;
}

C_Status copy_between_async(const C_Device to_device, const C_Device from_device, C_Stream stream,
                            void* to, const void* from, size_t bytes) {
  check(cudaMemcpyPeerAsync(to, to_device->id, from, from_device->id, bytes, of(stream)),
        "a copy between devices");
  return C_SUCCESS;
}

}  // namespace

void add_copies(C_DeviceInterface* table) {
  table->memory_copy_h2d = table->memory_copy_d2d = copy;
  table->memory_copy_d2h = copy_to_host;
  table->async_memory_copy_h2d = table->async_memory_copy_d2d = copy_async;
  table->async_memory_copy_d2h = copy_to_host_async;
  table->memory_copy_p2p = copy_between;
  table->async_memory_copy_p2p = copy_between_async;
}

size_t copies_to_host() { return to_host; }

}  // namespace qinfer
