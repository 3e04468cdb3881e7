// Between Paddle's tensors and the kernels: types, streams, and memory that survives a recording.
#pragma once
#include "kernels.h"
#include "paddle/extension.h"

namespace qinfer::cuda {

using paddle::DataType;
using paddle::Tensor;
using Shape = std::vector<int64_t>;

// The one place that knows where a stream comes from; also makes the tensor's device current.
cudaStream_t stream_of(const Tensor& x);
cudaStream_t stream_of(int device);

// An uninitialised tensor beside `like`. While a step is recorded its memory comes from a pool
// that only recordings use, as it is written again at every replay.
Tensor output(const Shape& shape, DataType dtype, const Tensor& like);

inline Type type_of(const Tensor& x, const char* what) {
  PD_CHECK(x.dtype() == DataType::BFLOAT16 || x.dtype() == DataType::FLOAT16, what,
           " must be bfloat16 or float16 on a GPU");
  return x.dtype() == DataType::BFLOAT16 ? Type::kBF16 : Type::kF16;
}

template <class T>
const T* numbers(const Tensor& x, DataType dtype, const char* what) {
  PD_CHECK(x.dtype() == dtype, what, " has another type than the operator takes");
  return static_cast<const T*>(x.data());
}
inline const float* floats(const Tensor& x, const char* what) {
  return numbers<float>(x, DataType::FLOAT32, what);
}
inline const int64_t* longs(const Tensor& x, const char* what) {
  return numbers<int64_t>(x, DataType::INT64, what);
}
inline const int32_t* ints(const Tensor& x, const char* what) {
  return numbers<int32_t>(x, DataType::INT32, what);
}

}  // namespace qinfer::cuda
