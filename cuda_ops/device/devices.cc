// The cards: how many there are, which is used, and what each can do.
#include "device.h"

namespace qinfer {
namespace {

C_Status nothing() { return C_SUCCESS; }
C_Status no_deinit(const C_Device) { return C_SUCCESS; }

C_Status set_device(const C_Device device) {
  use(device);
  return C_SUCCESS;
}

C_Status get_device(const C_Device device) {
  check(cudaGetDevice(&device->id), "asking for the current device");
  return C_SUCCESS;
}

C_Status device_count(size_t* count) {
  int found = 0;
  if (cudaGetDeviceCount(&found) != cudaSuccess) {
    cudaGetLastError();  // no driver or no card: Paddle still has to load
    found = 0;
  }
  *count = static_cast<size_t>(found < kMostDevices ? found : kMostDevices);
  return C_SUCCESS;
}

C_Status device_list(size_t* devices) {
  size_t count = 0;
  device_count(&count);
  for (size_t i = 0; i < count; ++i) devices[i] = i;
  return C_SUCCESS;
}

template <cudaDeviceAttr A>
C_Status attribute(const C_Device device, size_t* value) {
  int found = 0;
  check(cudaDeviceGetAttribute(&found, A, device->id), "reading a device attribute");
  *value = static_cast<size_t>(found);
  return C_SUCCESS;
}

C_Status capability(const C_Device device, size_t* value) {
  size_t major = 0, minor = 0;
  attribute<cudaDevAttrComputeCapabilityMajor>(device, &major);
  attribute<cudaDevAttrComputeCapabilityMinor>(device, &minor);
  *value = major * 10 + minor;
  return C_SUCCESS;
}

C_Status runtime_version(const C_Device, size_t* version) {
  int found = 0;
  check(cudaRuntimeGetVersion(&found), "asking for the version");
  *version = static_cast<size_t>(found);
  return C_SUCCESS;
}

C_Status driver_version(const C_Device, size_t* version) {
  int found = 0;
  check(cudaDriverGetVersion(&found), "asking for the version");
  *version = static_cast<size_t>(found);
  return C_SUCCESS;
}

C_Status yes(const C_Device, bool* supported) {
  *supported = true;
  return C_SUCCESS;
}

}  // namespace

void add_devices(C_DeviceInterface* table) {
  table->initialize = table->finalize = nothing;
  table->init_device = table->set_device = set_device;
  table->get_device = get_device;
  table->deinit_device = no_deinit;
  table->get_device_count = device_count;
  table->get_device_list = device_list;
  table->get_compute_capability = capability;
  table->get_runtime_version = runtime_version;
  table->get_driver_version = driver_version;
  table->get_multi_process = attribute<cudaDevAttrMultiProcessorCount>;
  table->get_max_threads_per_mp = attribute<cudaDevAttrMaxThreadsPerMultiProcessor>;
  table->get_max_threads_per_block = attribute<cudaDevAttrMaxThreadsPerBlock>;
  table->is_float16_supported = table->is_bfloat16_supported = yes;
}

}  // namespace qinfer
