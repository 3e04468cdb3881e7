#include "tensors.h"

#include <array>
#include <stdexcept>
#include <string>

#include "../../device/pool.h"
#include "paddle/phi/api/include/context_pool.h"
#include "paddle/phi/api/include/tensor_utils.h"
#ifdef PADDLE_WITH_CUDA
#include "paddle/phi/backends/gpu/gpu_context.h"
#else
#include "paddle/phi/backends/all_context.h"
#include "paddle/phi/backends/custom/custom_context.h"
#endif

namespace qinfer::cuda {
namespace {

thread_local bool recording = false;
thread_local std::string last_error;

// Never destroyed: tensors may outlive everything.
Pool& pool(int device) {
  static auto* pools = new std::array<Pool, kMostDevices>;
  return pools->at(device);
}

phi::Place place_of(int device) {
#ifdef PADDLE_WITH_CUDA
  return phi::GPUPlace(device);
#else
  return phi::CustomPlace("nv", device);
#endif
}

// Runs what a C function is for; its error's text is kept for qinfer_cuda_error.
template <class Run>
int guarded(Run run) {
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

}  // namespace

cudaStream_t stream_of(int device) {
  check(cudaSetDevice(device), "choosing the device");
  auto* context = paddle::experimental::DeviceContextPool::Instance().Get(place_of(device));
#ifdef PADDLE_WITH_CUDA
  return static_cast<const phi::GPUContext*>(context)->stream();
#else
  return static_cast<cudaStream_t>(static_cast<const phi::CustomContext*>(context)->stream());
#endif
}

cudaStream_t stream_of(const Tensor& x) {
  PD_CHECK(!x.is_cpu(), "an operator for a GPU was given a tensor in the computer's memory");
  return stream_of(x.place().GetDeviceId());
}

Tensor output(const Shape& shape, DataType dtype, const Tensor& like) {
  if (!recording) return paddle::empty(shape, dtype, like.place());
  size_t bytes = phi::SizeOf(dtype);
  for (const int64_t size : shape) bytes *= size;
  const int device = like.place().GetDeviceId();
  cudaError_t why = cudaSuccess;
  void* block = pool(device).allocate(bytes, &why);
  check(why, "allocating memory for a recorded step");
  return paddle::from_blob(block, shape, dtype, phi::DataLayout::NCHW, like.place(),
                           [device](void* p) { pool(device).free(p); });
}

// An uninitialised tensor of `like`'s type on a card, without Paddle's own way of making one.
std::vector<Tensor> empty(const Tensor& like, const Shape& shape, int64_t device) {
  return {paddle::empty(shape, like.dtype(), place_of(static_cast<int>(device)))};
}

// A part of a tensor's bytes as a tensor of its own, which keeps the first one alive.
std::vector<Tensor> view(const Tensor& bytes, int64_t offset, const Shape& shape, int64_t dtype) {
  static constexpr DataType kTypes[] = {DataType::INT64, DataType::INT32, DataType::FLOAT32,
                                        DataType::UINT8};
  PD_CHECK(dtype >= 0 && dtype < 4, "qinfer_cuda_view: unknown type");
  int64_t end = phi::SizeOf(kTypes[dtype]);
  for (const int64_t size : shape) end *= size;
  PD_CHECK(offset >= 0 && offset + end <= bytes.numel(), "qinfer_cuda_view: outside the buffer");
  auto* start = static_cast<uint8_t*>(const_cast<void*>(bytes.data())) + offset;
  return {paddle::from_blob(start, shape, kTypes[dtype], phi::DataLayout::NCHW, bytes.place(),
                            [bytes](void*) {})};
}

}  // namespace qinfer::cuda

PD_BUILD_OP(qinfer_cuda_empty)
    .Inputs({"like"})
    .Outputs({"out"})
    .Attrs({"shape: std::vector<int64_t>", "device: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::empty));

PD_BUILD_OP(qinfer_cuda_view)
    .Inputs({"bytes"})
    .Outputs({"part"})
    .Attrs({"offset: int64_t", "shape: std::vector<int64_t>", "dtype: int64_t"})
    .SetKernelFn(PD_KERNEL(qinfer::cuda::view));

// For cuda_ops/graphs.py: each function returns 0, or 1 with qinfer_cuda_error's text.
extern "C" {

const char* qinfer_cuda_error() { return qinfer::cuda::last_error.c_str(); }

int qinfer_cuda_begin(int device) {
  return qinfer::cuda::guarded([&] {
    const cudaStream_t stream = qinfer::cuda::stream_of(device);
    qinfer::cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed),
                        "recording a step");
    qinfer::cuda::recording = true;
  });
}

// Ends a recording; `graph` stays null where it was spoilt.
int qinfer_cuda_end(int device, void** graph, size_t* kernels) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::recording = false;
    cudaGraph_t recorded = nullptr;
    qinfer::cuda::check(cudaStreamEndCapture(qinfer::cuda::stream_of(device), &recorded),
                        "recording a step");
    cudaGraphGetNodes(recorded, nullptr, kernels);
    cudaGraphExec_t ready = nullptr;
    const cudaError_t code = cudaGraphInstantiate(&ready, recorded, 0);
    cudaGraphDestroy(recorded);
    qinfer::cuda::check(code, "preparing a recorded step");
    *graph = ready;
  });
}

int qinfer_cuda_replay(int device, void* graph) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(
        cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), qinfer::cuda::stream_of(device)),
        "replaying a step");
  });
}

int qinfer_cuda_drop(void* graph) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)),
                        "dropping a recorded step");
  });
}

int qinfer_cuda_wait(int device) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(cudaStreamSynchronize(qinfer::cuda::stream_of(device)),
                        "work on the device");
  });
}

// Queues a copy, either way; memory of the computer should be pinned.
int qinfer_cuda_copy(int device, void* to, const void* from, size_t bytes) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(
        cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, qinfer::cuda::stream_of(device)),
        "a copy");
  });
}

// A place in the device's queue that can be waited for.
int qinfer_cuda_new_mark(int device, void** mark) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(cudaSetDevice(device), "choosing the device");
    cudaEvent_t event = nullptr;
    qinfer::cuda::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making a mark");
    *mark = event;
  });
}

// Puts it behind everything queued so far.
int qinfer_cuda_set_mark(int device, void* mark) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(
        cudaEventRecord(static_cast<cudaEvent_t>(mark), qinfer::cuda::stream_of(device)),
        "setting a mark");
  });
}

// Waits for it; at once if it was never set.
int qinfer_cuda_wait_mark(void* mark) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(cudaEventSynchronize(static_cast<cudaEvent_t>(mark)), "work on the device");
  });
}

int qinfer_cuda_drop_mark(void* mark) {
  return qinfer::cuda::guarded([&] {
    qinfer::cuda::check(cudaEventDestroy(static_cast<cudaEvent_t>(mark)), "dropping a mark");
  });
}

int qinfer_cuda_pin(void** block, size_t bytes) {
  return qinfer::cuda::guarded(
      [&] { qinfer::cuda::check(cudaMallocHost(block, bytes), "allocating pinned memory"); });
}

int qinfer_cuda_unpin(void* block) {
  return qinfer::cuda::guarded(
      [&] { qinfer::cuda::check(cudaFreeHost(block), "freeing pinned memory"); });
}

// Memory of recordings: in use, the most there was, kept.
void qinfer_cuda_usage(int device, size_t* used, size_t* peak, size_t* kept) {
  const qinfer::Usage usage = qinfer::cuda::pool(device).usage();
  *used = usage.used, *peak = usage.peak, *kept = usage.kept;
}

}  // extern "C"
