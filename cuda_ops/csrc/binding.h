// What the bindings share: memory for results, and the numbers of a tensor.
#pragma once

#include "cpu/record.h"
#include "paddle/extension.h"

namespace qinfer::binding {

using paddle::DataType;
using paddle::Tensor;
using Optional = paddle::optional<Tensor>;
using Shape = std::vector<int64_t>;

constexpr int64_t kFew = 8;  // rows whose small operators one thread does faster than a team

// A tensor for a result; while recording out of the recording's memory.
inline Tensor result(const Shape& shape, DataType type, const Tensor& like) {
  qinfer::Recording* recording = qinfer::recording();
  if (!recording) return paddle::empty(shape, type, like.place());
  size_t bytes = phi::SizeOf(type);
  for (int64_t size : shape) bytes *= size;
  auto arena = recording->arena;
  const auto give_back = [arena, bytes](void* memory) { arena->give_back(memory, bytes); };
  return paddle::from_blob(arena->take(bytes), shape, type, phi::DataLayout::NCHW, like.place(),
                           give_back);
}

// Where a tensor's numbers are. A recording keeps what comes from outside alive.
inline const void* read(const Tensor& x) {
  const void* data = x.data();
  qinfer::Recording* recording = qinfer::recording();
  if (recording && !recording->arena->owns(data)) recording->held.push_back(x.impl());
  return data;
}

template <typename T>
const T* read(const Tensor& x, DataType type, const char* what) {
  PD_CHECK(x.dtype() == type, what, " must be ", type);
  return static_cast<const T*>(read(x));
}

inline const float* floats(const Tensor& x, const char* what) {
  return read<float>(x, DataType::FLOAT32, what);
}

inline const float* floats(const Optional& x, const char* what) {
  return x ? floats(*x, what) : nullptr;
}

inline const int32_t* int32s(const Tensor& x, const char* what) {
  return read<int32_t>(x, DataType::INT32, what);
}

inline const int64_t* int64s(const Tensor& x, const char* what) {
  return read<int64_t>(x, DataType::INT64, what);
}

inline float* written(const Tensor& x) { return const_cast<float*>(x.data<float>()); }

}  // namespace qinfer::binding
