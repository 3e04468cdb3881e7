// Streams and events.
#include "device.h"

namespace qinfer {
namespace {

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

}  // namespace

void add_streams(C_DeviceInterface* table) {
  table->create_stream = create_stream;
  table->destroy_stream = destroy_stream;
  table->query_stream = query_stream;
  table->stream_add_callback = add_callback;
  table->create_event = create_event;
  table->record_event = record_event;
  table->destroy_event = destroy_event;
  table->query_event = query_event;
  table->synchronize_device = synchronize_device;
  table->synchronize_stream = synchronize_stream;
  table->synchronize_event = synchronize_event;
  table->stream_wait_event = wait_event;
}

}  // namespace qinfer
