#include <array>
#include <mutex>

#include "common.cuh"

namespace qinfer::cuda {
namespace {

struct Facts {
  int multiprocessors = 0, major = 0, shared = 0;
};

const Facts& facts() {
  static std::array<Facts, kMostDevices> known;
  static std::array<std::once_flag, kMostDevices> once;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  if (device >= kMostDevices) throw std::runtime_error("there are more than 64 CUDA devices");
  std::call_once(once[device], [&] {
    Facts& f = known[device];
    check(cudaDeviceGetAttribute(&f.multiprocessors, cudaDevAttrMultiProcessorCount, device),
          "reading a device attribute");
    check(cudaDeviceGetAttribute(&f.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "reading a device attribute");
    check(cudaDeviceGetAttribute(&f.major, cudaDevAttrComputeCapabilityMajor, device),
          "reading a device attribute");
  });
  return known[device];
}

}  // namespace

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not be found again by the next call
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(code) +
                           " (" + cudaGetErrorName(code) + ")");
}

int multiprocessors() { return facts().multiprocessors; }
int most_shared() { return facts().shared; }
bool is_hopper() { return facts().major >= 9; }
bool is_sm90() { return facts().major == 9; }

}  // namespace qinfer::cuda
