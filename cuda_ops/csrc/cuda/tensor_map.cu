#include <cudaTypedefs.h>

#include "hopper.cuh"

namespace qinfer::cuda {

CUtensorMap tensor_map(CUtensorMapDataType type, const void* from, int rank, const uint64_t* sizes,
                       const uint64_t* strides, const uint32_t* box) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                              12000, cudaEnableDefault, &result);
#else
    const cudaError_t code =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    check(code, "asking the driver for cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  CUtensorMap map;
  const uint32_t inner = box[0] * (type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2);  // bytes
  const uint32_t ones[5] = {1, 1, 1, 1, 1};
  const CUresult code =
      encode(&map, type, rank, const_cast<void*>(from), sizes, strides, box, ones,
             CU_TENSOR_MAP_INTERLEAVE_NONE,
             inner == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS)
    throw std::runtime_error("CUDA: describing a tensor for copies failed (" +
                             std::to_string(int(code)) + ")");
  return map;
}

}  // namespace qinfer::cuda
