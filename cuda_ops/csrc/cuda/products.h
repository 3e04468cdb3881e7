// Which kernel computes a product: few rows by those that read the weights once as they are held,
// many by cuBLASLt, from weights unpacked for it where it does not know their format.
#pragma once
#include <vector>

#include "matmul.h"
#include "tensors.h"

namespace qinfer::cuda {

using Optional = paddle::optional<Tensor>;

// Storage beside `like` until its end; what it gives away may be used again by later kernels.
class Spaces {
 public:
  explicit Spaces(const Tensor& like) : like_(like) {}
  void* operator()(size_t bytes) {
    held_.push_back(output({static_cast<int64_t>(bytes)}, DataType::UINT8, like_));
    return held_.back().data();
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> held_;
};

// A weight [out, in], and what it is to be multiplied with but for the numbers.
struct Operands {
  const Tensor& weight;
  const Optional &scale, &bias;
  Format format;
  int64_t rows, in, out;
  Type type;  // of x and y
  cudaStream_t stream;
};

// `like`: a tensor [rows, ...] of x's type. Refuses what does not fit together.
Operands operands(const Tensor& like, int64_t in, const Tensor& weight, const Optional& scale,
                  const Optional& bias, int64_t format, int64_t out);

// Inputs rounded to eight bits for a weight of e4m3 or int8, before they are: `numbers` are to
// become codes as bytes or as numbers of the activations' type, and `scale` [rows]. `gated`: for
// multiply_gated.
struct Rounded {
  void* numbers;
  float* scale;
  bool as_bytes;
};
Rounded rounded_inputs(const Operands& o, bool gated, Spaces& spaces);
void multiply_rounded(const Operands& o, const Rounded& x, void* y, Spaces& spaces);

// y = x W^T, scaled and biased; inputs are rounded first where the weight is of e4m3.
void multiply(const Operands& o, const void* x, void* y, Spaces& spaces);

// The product's halves gated in the registers of one kernel, where that is the fastest: y [rows,
// out / 2]. Of e4m3 x is `rounded`'s.
bool gates_itself(const Operands& o);
void multiply_gated(const Operands& o, const void* x, const float* x_scale, void* y);

// fused_product's arguments, but for norm and gate.
FusedProduct fused(const Operands& o, const void* x, void* y);

}  // namespace qinfer::cuda
