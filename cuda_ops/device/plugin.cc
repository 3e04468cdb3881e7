// NVIDIA GPUs as a Paddle device called "nv", for the Paddle that PyPI has, which is built for the
// CPU alone. Paddle loads this library when it is imported, if CUSTOM_DEVICE_ROOT names its
// folder. What CUDA reports is thrown with CUDA's words and reaches Python as a RuntimeError; what
// Paddle calls from destructors and to allocate memory returns a status instead.
#ifndef PADDLE_WITH_CUSTOM_DEVICE
#define PADDLE_WITH_CUSTOM_DEVICE
#endif
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

#include "paddle/phi/backends/device_ext.h"
#include "pool.h"

namespace {

constexpr int kMostDevices = 64;

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

// Never destroyed: Paddle frees memory while the process ends.
qinfer::Pool& pool(int device) {
  static auto* pools = new std::array<qinfer::Pool, kMostDevices>;
  return pools->at(device);
}

void use(const C_Device device) { check(cudaSetDevice(device->id), "choosing the device"); }
cudaStream_t of(C_Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }
cudaEvent_t of(C_Event event) { return reinterpret_cast<cudaEvent_t>(event); }

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

// Streams and events

C_Status create_stream(const C_Device device, C_Stream* stream) {
  use(device);
  check(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking),
        "creating a stream");
  return C_SUCCESS;
}

C_Status destroy_stream(const C_Device, C_Stream stream) {
  return status(cudaStreamDestroy(of(stream)));
}

C_Status query_stream(const C_Device, C_Stream stream) {
  return status(cudaStreamQuery(of(stream)));
}

struct Callback {
  C_Device_st device;
  C_Stream stream;
  C_Callback run;
  void* data;
};

void run_callback(void* given) {
  auto* callback = static_cast<Callback*>(given);
  C_Status done = C_SUCCESS;
  callback->run(&callback->device, callback->stream, callback->data, &done);
  delete callback;
}

C_Status add_callback(const C_Device device, C_Stream stream, C_Callback run, void* data) {
  auto* callback = new Callback{*device, stream, run, data};
  const cudaError_t code = cudaLaunchHostFunc(of(stream), run_callback, callback);
  if (code != cudaSuccess) delete callback;
  check(code, "queueing a callback");
  return C_SUCCESS;
}

C_Status create_event(const C_Device device, C_Event* event) {
  use(device);
  check(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event), cudaEventDisableTiming),
        "creating an event");
  return C_SUCCESS;
}

C_Status record_event(const C_Device, C_Stream stream, C_Event event) {
  check(cudaEventRecord(of(event), of(stream)), "recording an event");
  return C_SUCCESS;
}

C_Status destroy_event(const C_Device, C_Event event) {
  return status(cudaEventDestroy(of(event)));
}

C_Status query_event(const C_Device, C_Event event) { return status(cudaEventQuery(of(event))); }

C_Status synchronize_device(const C_Device device) {
  use(device);
  check(cudaDeviceSynchronize(), "work on the device");
  return C_SUCCESS;
}

// While a step is recorded nothing runs, so there is nothing to wait for, and waiting would spoil
// the recording. Paddle's executor of programs waits at the end of each.
bool is_recording(C_Stream stream) {
  cudaStreamCaptureStatus found = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(of(stream), &found), "asking for a stream's state");
  return found != cudaStreamCaptureStatusNone;
}

C_Status synchronize_stream(const C_Device, C_Stream stream) {
  if (is_recording(stream)) return C_SUCCESS;
  check(cudaStreamSynchronize(of(stream)), "work on the device");
  return C_SUCCESS;
}

C_Status synchronize_event(const C_Device, C_Event event) {
  check(cudaEventSynchronize(of(event)), "work on the device");
  return C_SUCCESS;
}

C_Status wait_event(const C_Device, C_Stream stream, C_Event event) {
  check(cudaStreamWaitEvent(of(stream), of(event), 0), "waiting for an event");
  return C_SUCCESS;
}

// Memory

C_Status allocate(const C_Device device, void** block, size_t bytes) {
  use(device);
  cudaError_t why = cudaSuccess;
  *block = pool(device->id).allocate(bytes, &why);
  // Not thrown: Paddle calls this where nothing may be thrown.
  if (why != cudaSuccess) return C_FAILED;
  return C_SUCCESS;
}

C_Status deallocate(const C_Device device, void* block, size_t) {
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

// Copies without a stream come after all that has been queued, as the streams made above do not
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
std::atomic<size_t> copies_to_host{0};

C_Status copy_to_host(const C_Device device, void* to, const void* from, size_t bytes) {
  ++copies_to_host;
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
  ++copies_to_host;
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

C_Status memory(const C_Device device, size_t* total, size_t* free) {
  use(device);
  check(cudaMemGetInfo(free, total), "asking for free memory");
  *free += pool(device->id).usage().kept;
  return C_SUCCESS;
}

C_Status min_chunk(const C_Device, size_t* bytes) {
  *bytes = 512;
  return C_SUCCESS;
}

// Facts

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

extern "C" {

__attribute__((visibility("default"))) void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static char name[] = "nv";
  params->device_type = name;
  C_DeviceInterface* i = params->interface;
  *i = C_DeviceInterface{};
  i->size = sizeof(C_DeviceInterface);
  i->initialize = i->finalize = nothing;
  i->init_device = i->set_device = set_device;
  i->get_device = get_device;
  i->deinit_device = no_deinit;
  i->create_stream = create_stream;
  i->destroy_stream = destroy_stream;
  i->query_stream = query_stream;
  i->stream_add_callback = add_callback;
  i->create_event = create_event;
  i->record_event = record_event;
  i->destroy_event = destroy_event;
  i->query_event = query_event;
  i->synchronize_device = synchronize_device;
  i->synchronize_stream = synchronize_stream;
  i->synchronize_event = synchronize_event;
  i->stream_wait_event = wait_event;
  i->device_memory_allocate = allocate;
  i->device_memory_deallocate = deallocate;
  i->device_memory_set = fill;
  i->host_memory_allocate = allocate_host;
  i->host_memory_deallocate = deallocate_host;
  i->memory_copy_h2d = i->memory_copy_d2d = copy;
  i->memory_copy_d2h = copy_to_host;
  i->async_memory_copy_h2d = i->async_memory_copy_d2d = copy_async;
  i->async_memory_copy_d2h = copy_to_host_async;
  i->memory_copy_p2p = copy_between;
  i->async_memory_copy_p2p = copy_between_async;
  i->get_device_count = device_count;
  i->get_device_list = device_list;
  i->device_memory_stats = memory;
  i->device_min_chunk_size = min_chunk;
  i->get_compute_capability = capability;
  i->get_runtime_version = runtime_version;
  i->get_driver_version = driver_version;
  i->get_multi_process = attribute<cudaDevAttrMultiProcessorCount>;
  i->get_max_threads_per_mp = attribute<cudaDevAttrMaxThreadsPerMultiProcessor>;
  i->get_max_threads_per_block = attribute<cudaDevAttrMaxThreadsPerBlock>;
  i->is_float16_supported = i->is_bfloat16_supported = yes;
}

// Bytes in use, the most there were, and those kept for later; for a device by its number.
__attribute__((visibility("default"))) void qinfer_nv_usage(int device, size_t* used, size_t* peak,
                                                            size_t* kept) {
  const qinfer::Usage usage = pool(device).usage();
  *used = usage.used, *peak = usage.peak, *kept = usage.kept;
}

__attribute__((visibility("default"))) size_t qinfer_nv_copies_to_host() { return copies_to_host; }

}  // extern "C"
