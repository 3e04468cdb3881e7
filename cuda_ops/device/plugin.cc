// NVIDIA GPUs as a Paddle device called "nv", for the Paddle that PyPI has, which is built for the
// CPU alone. Paddle loads this library when it is imported, if CUSTOM_DEVICE_ROOT names its
// folder. What CUDA reports is thrown with CUDA's words and reaches Python as a RuntimeError; what
// Paddle calls from destructors and to allocate memory returns a status instead.
#include <stdexcept>
#include <string>

#include "device.h"

namespace qinfer {

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(code) +
                           " (" + cudaGetErrorName(code) + ")");
}

C_Status status(cudaError_t code) {
  if (code != cudaSuccess) cudaGetLastError();
  return code == cudaSuccess ? C_SUCCESS : C_FAILED;
}

}  // namespace qinfer

extern "C" {

__attribute__((visibility("default"))) void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static char name[] = "nv";
  params->device_type = name;
  C_DeviceInterface* table = params->interface;
  *table = C_DeviceInterface{};
  table->size = sizeof(C_DeviceInterface);
  qinfer::add_devices(table);
  qinfer::add_streams(table);
  qinfer::add_memory(table);
  qinfer::add_copies(table);
}

// Bytes in use, the most there were, and those kept for later; for a device by its number.
__attribute__((visibility("default"))) void qinfer_nv_usage(int device, size_t* used, size_t* peak,
                                                            size_t* kept) {
  const qinfer::Usage usage = qinfer::pool(device).usage();
  *used = usage.used, *peak = usage.peak, *kept = usage.kept;
}

__attribute__((visibility("default"))) size_t qinfer_nv_copies_to_host() {
  return qinfer::copies_to_host();
}

}  // extern "C"
